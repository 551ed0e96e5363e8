// The sorting family on the CPU: plans, tiles over threads, and the registrations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <tuple>

#include "../networks.h"
#include "../transport.h"
#include "instruction_set.h"
#include "sorting_kernels.h"

namespace difflayers::cpu {

int64_t reach(const Plan& plan, int64_t begin, int64_t end, char* active, int32_t* visited) {
  int64_t count = 0;
  for (int64_t i = 0; i < plan.n; ++i) active[i] = i >= begin && i < end;
  for (int64_t k = 0; k < plan.comparators; ++k) {
    const char acts = active[plan.lower[k]] | active[plan.upper[k]];
    active[plan.lower[k]] = active[plan.upper[k]] = acts;
    visited[count] = static_cast<int32_t>(k);
    count += acts;
  }
  return count;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- plans ---------------------------------------------------------------------------------------------

constexpr int64_t stage_lanes = 32 * lanes;  // what the kernels gather at a time

struct OwnedPlan {
  Plan view;
  std::vector<Step> steps;
  std::vector<int32_t> lower, upper, slot, reach;
  std::vector<int64_t> reach_begin;
};

// Lays a layer out: runs of neighbouring comparators that fill whole packets in place, the rest gathered.
void lay_out(OwnedPlan& plan, const Program& program, int64_t width, int64_t begin, int64_t end, int64_t& tape) {
  std::vector<int64_t> rest;
  const int64_t per_packet = lanes / width;
  const auto emit = [&](const int64_t* which, int64_t count, bool direct) {
    const int64_t packets = (count * width + lanes - 1) / lanes;
    plan.steps.push_back({static_cast<int32_t>(packets), static_cast<int32_t>(count),
                          static_cast<int32_t>(plan.lower.size()), direct, tape});
    for (int64_t i = 0; i < count; ++i) {
      plan.lower.push_back(program.lower[which[i]]);
      plan.upper.push_back(program.upper[which[i]]);
      plan.slot.push_back(static_cast<int32_t>(tape * lanes + i * width));
    }
    tape += packets;
  };
  std::vector<int64_t> run;
  for (int64_t k = begin; k < end; k += static_cast<int64_t>(run.size())) {
    run.assign(1, k);
    while (k + static_cast<int64_t>(run.size()) < end &&
           program.lower[run.back() + 1] == program.lower[run.back()] + 1 &&
           program.upper[run.back() + 1] == program.upper[run.back()] + 1)
      run.push_back(run.back() + 1);
    const int64_t whole = static_cast<int64_t>(run.size()) / per_packet * per_packet;
    if (whole > 0) emit(run.data(), whole, true);
    rest.insert(rest.end(), run.begin() + whole, run.end());
  }
  const int64_t at_once = stage_lanes / width;
  for (int64_t i = 0; i < static_cast<int64_t>(rest.size()); i += at_once)
    emit(rest.data() + i, std::min<int64_t>(at_once, static_cast<int64_t>(rest.size()) - i), false);
}

std::shared_ptr<const OwnedPlan> plan_for(const Call& call, int64_t width) {
  using Key = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, bool>;
  static auto& cache = *new std::map<Key, std::shared_ptr<const OwnedPlan>>;  // leaked, as in networks.cpp
  static std::mutex mutex;
  static int64_t cached = 0;
  constexpr int64_t limit = 1 << 24;  // comparators

  const bool matrix = call.what == 1;
  Key key{call.network, call.n, call.first, call.last, width, matrix};
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = cache.find(key); found != cache.end()) return found->second;
  const auto source = program(call.network, call.n, call.first, call.last);
  auto made = std::make_shared<OwnedPlan>();
  int64_t tape = 0;
  for (int64_t l = 0; l < source->layers(); ++l)
    lay_out(*made, *source, width, source->layer_begin[l], source->layer_begin[l + 1], tape);
  STD_TORCH_CHECK(tape * lanes < (int64_t(1) << 31), "difflayers: the network is too large: ",
                  source->comparators(), " comparators");
  made->view = {call.n, width, source->comparators(), tape, source->layers(),
                static_cast<int64_t>(made->steps.size()), made->steps.data(), made->lower.data(),
                made->upper.data(), made->slot.data(), nullptr, nullptr};
  if (matrix && call.n <= 1024) {  // beyond, the lists would outgrow the caches and are made as they are needed
    std::vector<char> active(call.n);
    std::vector<int32_t> visited(source->comparators());
    made->reach_begin.push_back(0);
    for (int64_t j = 0; j < call.n; j += lanes) {
      const int64_t count = reach(made->view, j, j + lanes, active.data(), visited.data());
      made->reach.insert(made->reach.end(), visited.begin(), visited.begin() + count);
      made->reach_begin.push_back(static_cast<int64_t>(made->reach.size()));
    }
    made->view.reach = made->reach.data();
    made->view.reach_begin = made->reach_begin.data();
  }
  if (cached + source->comparators() > limit) {
    cache.clear();
    cached = 0;
  }
  cached += source->comparators();
  cache.emplace(std::move(key), made);
  return made;
}

// How many samples share a tile. Wide tiles need no gathering; narrow ones keep a large network in cache and
// leave tiles for every thread.
int64_t width_for(const Call& call, int64_t threads) {
  int64_t width = lanes;
  if (call.by_column()) width = call.n <= 128 ? 4 : 1;
  while (width > 1 && (width / 2 >= call.rows || call.n * width > (1 << 14))) width /= 2;
  // enough work for every thread, where the work is worth a thread
  while (width > 4 && call.rows < width * threads && call.n >= 512) width /= 2;
  return width;
}

// --- scratch ---------------------------------------------------------------------------------------------

// One buffer per thread, kept between calls so that its pages are not faulted in again; large ones are freed.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes) {
    if (bytes > capacity()) {
      release();
      buffer() = ::operator new(bytes, std::align_val_t(64));
      capacity() = bytes;
    }
  }
  ~Scratch() {
    if (bytes_ > (size_t(16) << 20)) release();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return buffer(); }

 private:
  struct Holder {
    void* buffer = nullptr;
    size_t capacity = 0;
    ~Holder() {
      if (buffer != nullptr) ::operator delete(buffer, std::align_val_t(64));
    }
  };
  static Holder& holder() {
    thread_local Holder held;
    return held;
  }
  static void*& buffer() { return holder().buffer; }
  static size_t& capacity() { return holder().capacity; }
  static void release() {
    if (buffer() != nullptr) ::operator delete(buffer(), std::align_val_t(64));
    buffer() = nullptr;
    capacity() = 0;
  }
  size_t bytes_;
};

// --- calls -----------------------------------------------------------------------------------------------

template <class T>
const Kernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return instruction_set().kernels->f32;
  else
    return instruction_set().kernels->f64;
}

template <class T>
Job<T> job_of(const Call& call) {
  Job<T> job{};
  job.what = static_cast<What>(call.what);
  job.swap = call.swap;
  job.hard = call.hard;
  job.by_column = call.by_column();
  job.parameter = static_cast<T>(call.parameter);
  job.rows = call.rows;
  job.first = call.first;
  job.last = call.last;
  job.m = call.m;
  job.scores = data<T>(call.scores);
  job.steepness = call.steepness ? data<T>(*call.steepness) : nullptr;
  job.constant = static_cast<T>(call.constant);
  if (call.payload) {
    job.payload = data<T>(*call.payload);
    job.payload_stride = call.payload->size(0) == 1 ? 0 : call.payload->size(1) * call.m;
  }
  return job;
}

// Runs kernel number `which` on every tile; small work stays on one thread.
template <class T>
void run(const Call& call, Job<T>& job, int which) {
  if (call.rows == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const auto plan = plan_for(call, width_for(call, threads));
  job.plan = &plan->view;
  const auto& kernel = kernels<T>();
  const auto tile_kernel = which == 0 ? kernel.forward : which == 1 ? kernel.gradient : kernel.curvature;
  const int64_t tiles = (call.rows + plan->view.width - 1) / plan->view.width;
  const size_t bytes = kernel.scratch_bytes(job, which);
  // about 10 ns for a packet on each pass, and 5 ns for 16 payload columns; 200 us are worth a thread
  const int64_t passes = which == 0 ? 1 : which == 1 ? 3 : 6;
  const int64_t columns = call.by_column() ? (call.columns() + lanes - 1) / lanes : 0;
  int64_t cost = 10 * plan->view.packets * passes * (call.by_column() ? 1 : std::max<int64_t>(call.m, 1));
  cost += 5 * columns * plan->view.comparators * plan->view.width * passes;
  const int64_t grain = std::max<int64_t>(1, 200000 / std::max<int64_t>(cost, 1));
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(bytes);
    for (int64_t tile = begin; tile < end; ++tile) tile_kernel(job, tile, scratch.get());
  });
}

template <class T>
void forward(const Call& call, Tensor& result) {
  Job<T> job = job_of<T>(call);
  job.result = data<T>(result);
  run(call, job, 0);
}

template <class T>
void backward(const Call& call, const Tensor& gradient, Tensor& of_scores, Tensor& of_steepness, Tensor& of_payload) {
  Job<T> job = job_of<T>(call);
  job.gradient = data<T>(gradient);
  job.of_scores = data<T>(of_scores);
  if (of_steepness.numel() > 0) job.of_steepness = data<T>(of_steepness);
  job.of_steepness_wanted = job.of_steepness != nullptr;
  if (of_payload.numel() > 0) job.of_payload = data<T>(of_payload);
  run(call, job, 1);
}

template <class T>
void double_backward(const Call& call, const Tensor& gradient, const Directions& h, DoubleResult& out) {
  Job<T> job = job_of<T>(call);
  job.gradient = data<T>(gradient);
  job.h_scores = data<T>(h.scores);
  if (h.steepness) job.h_steepness = data<T>(*h.steepness);
  if (h.payload) job.h_payload = data<T>(*h.payload);
  job.result = data<T>(out.of_gradient);
  job.of_scores = data<T>(out.of_scores);
  if (out.of_steepness.numel() > 0) job.of_steepness = data<T>(out.of_steepness);
  job.of_steepness_wanted = job.of_steepness != nullptr;
  if (out.of_payload.numel() > 0) job.of_payload = data<T>(out.of_payload);
  run(call, job, 2);
}

struct Cpu {
  static void forward(const Call& call, Tensor& result) {
    call.is_double ? cpu::forward<double>(call, result) : cpu::forward<float>(call, result);
  }
  static void backward(const Call& call, const Tensor& gradient, Tensor& a, Tensor& b, Tensor& c) {
    call.is_double ? cpu::backward<double>(call, gradient, a, b, c) : cpu::backward<float>(call, gradient, a, b, c);
  }
  static void double_backward(const Call& call, const Tensor& gradient, const Directions& h, DoubleResult& out) {
    call.is_double ? cpu::double_backward<double>(call, gradient, h, out)
                   : cpu::double_backward<float>(call, gradient, h, out);
  }
};

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  using Operators = difflayers::TransportOperators<difflayers::cpu::Cpu>;
  library.impl("transport", TORCH_BOX(&Operators::forward));
  library.impl("transport_backward", TORCH_BOX(&Operators::backward));
  library.impl("transport_double_backward", TORCH_BOX(&Operators::double_backward));
}
