// The CUDA kernels' algorithm on the CPU, lane after lane, for tests on machines without a GPU: operators
// difflayers::emulated_transport*, with the schemas of the real ones. Nothing else calls them.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <type_traits>
#include <vector>

#include "../block_call.h"
#include "../block_row.h"
#include "../register_row.h"

namespace difflayers {
namespace {

// A team that takes one step of every lane in turn, the last lane first: code that lacks a barrier, or lets two
// lanes touch the same number between barriers, gives wrong results here too.
struct HostTeam {
  int32_t count;

  int32_t lanes() const { return count; }
  template <class Index, class F>
  void each(Index total, F f) const {
    for (int32_t lane = count - 1; lane >= 0; --lane)
      for (Index i = lane; i < total; i += count) f(i, lane);
  }
  template <class F>
  bool any(int32_t total, F f) const {
    bool found = false;
    for (int32_t i = 0; i < total; ++i) found |= f(i);
    return found;
  }
};

// Little memory, so that small tests meet every placement and width of tile.
constexpr size_t wires_limit = 6144, comfortable = 4096, tape_limit = 4096, slow_limit = size_t(1) << 16;

struct Emulation {
  template <int N, class SwapType, bool backwards, class T>
  static void in_registers(const block::Job<T>& job) {
    std::vector<T> tape(block::MergeNetwork<N>::count);
    T* const result = backwards ? job.of_scores : job.result;
    for (int64_t row = 0; row < job.rows; ++row) {
      T staged[N] = {}, staged_gradient[N] = {};
      std::memcpy(staged, job.scores + row * job.n, job.n * sizeof(T));
      if (backwards) std::memcpy(staged_gradient, job.gradient + row * job.n, job.n * sizeof(T));
      block::run_in_registers<N, SwapType, backwards>(job, row, staged, staged_gradient, {tape.data(), 1});
      std::memcpy(result + row * job.n, staged, job.n * sizeof(T));
    }
  }
  template <class Num, bool backwards, class T>
  static void run(const Call& call, block::Job<T>& job) {
    if constexpr (std::is_same_v<Num, double>)  // float32 tests, and the other networks, see the teams
      if (block::fits_registers(job, call.network == "odd_even_merge"))
        return block::with_size(job.n, [&](auto size) {
          block::with_short_swap(job.swap, [&](auto swap) { in_registers<size(), decltype(swap), backwards>(job); });
        });
    const auto source = program(call.network, call.n, call.first, call.last);
    const auto comparators = block::interleaved(*source);
    const auto layer_begin = block::layer_offsets(*source);
    job.table = {comparators.data(), layer_begin.data(), static_cast<int32_t>(source->layers()),
                 static_cast<int32_t>(source->comparators())};
    const HostTeam team{5};
    job.limits = {wires_limit, tape_limit};
    block::choose_tile<Num>(job, team.lanes(), comfortable, slow_limit);
    const block::Arena needed = block::measure<Num>(job, team.lanes());
    std::vector<double> fast(needed.fast_used / sizeof(double) + 2), slow(needed.slow_used / sizeof(double) + 2);
    block::Arena arena{reinterpret_cast<char*>(fast.data()), reinterpret_cast<char*>(slow.data())};
    block::Memory<Num> memory;
    memory.place(job, team.lanes(), arena);
    for (int64_t row = 0; row < job.rows; ++row) {
      std::memset(fast.data(), 0xff, fast.size() * sizeof(double));  // NaN
      std::memset(slow.data(), 0xff, slow.size() * sizeof(double));
      block::run_row<Num, backwards>(job, memory, team, row);
    }
  }
};

}  // namespace
}  // namespace difflayers

STABLE_TORCH_LIBRARY_FRAGMENT(difflayers, library) {
  library.def(
      "emulated_transport(Tensor scores, Tensor? steepness, Tensor? payload, str what, str network, int first, "
      "int last, str swap, float parameter, float constant, bool hard) -> Tensor");
  library.def(
      "emulated_transport_backward(Tensor gradient, Tensor scores, Tensor? steepness, Tensor? payload, str what, "
      "str network, int first, int last, str swap, float parameter, float constant, bool hard, bool of_steepness, "
      "bool of_payload) -> (Tensor, Tensor, Tensor)");
  library.def(
      "emulated_transport_double_backward(Tensor h_scores, Tensor? h_steepness, Tensor? h_payload, Tensor gradient, "
      "Tensor scores, Tensor? steepness, Tensor? payload, str what, str network, int first, int last, str swap, "
      "float parameter, float constant, bool hard) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  using Operators = difflayers::TransportOperators<difflayers::block::Teams<difflayers::Emulation>>;
  library.impl("emulated_transport", TORCH_BOX(&Operators::forward));
  library.impl("emulated_transport_backward", TORCH_BOX(&Operators::backward));
  library.impl("emulated_transport_double_backward", TORCH_BOX(&Operators::double_backward));
}
