// The sorting family on the CPU: plans, tiles over threads, and the registrations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
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
  std::vector<int32_t> lower, upper, slot, pattern, reach;
  std::vector<Window> window;
  std::vector<int64_t> reach_begin;
};

// Lays out one layer after another.
class Layout {
 public:
  Layout(OwnedPlan& plan, const Program& program, int64_t width)
      : plan_(plan), program_(program), width_(width), per_packet_(lanes / width) {}

  int64_t packets() const { return packets_; }

  void layer(int64_t begin, int64_t end) {
    // runs of neighbouring comparators that fill whole packets stay where they are
    std::vector<int64_t> rest, run;
    for (int64_t k = begin; k < end; k += static_cast<int64_t>(run.size())) {
      run.assign(1, k);
      while (run.back() + 1 < end && program_.lower[run.back() + 1] == program_.lower[run.back()] + 1 &&
             program_.upper[run.back() + 1] == program_.upper[run.back()] + 1)
        run.push_back(run.back() + 1);
      const int64_t whole = static_cast<int64_t>(run.size()) / per_packet_ * per_packet_;
      if (whole > 0) emit(run.data(), whole, direct);
      rest.insert(rest.end(), run.begin() + whole, run.end());
    }
    std::vector<int64_t> loose, windowed;
    for (size_t i = 0; i < rest.size(); i += per_packet_) {
      const bool fits = i + per_packet_ <= rest.size() && add_window(rest.data() + i, windowed);
      if (!fits) loose.insert(loose.end(), rest.begin() + i, rest.begin() + std::min(i + per_packet_, rest.size()));
    }
    in_stages(windowed, permuted);
    windows_.clear();
    in_stages(loose, gathered);
  }

 private:
  OwnedPlan& plan_;
  const Program& program_;
  const int64_t width_;
  const size_t per_packet_;
  int64_t packets_ = 0;
  std::vector<Window> windows_;
  std::map<std::vector<int32_t>, int32_t> patterns_;

  void in_stages(const std::vector<int64_t>& which, Kind kind) {
    const int64_t at_once = stage_lanes / width_;
    for (int64_t i = 0; i < static_cast<int64_t>(which.size()); i += at_once)
      emit(which.data() + i, std::min<int64_t>(at_once, static_cast<int64_t>(which.size()) - i), kind,
           i / static_cast<int64_t>(per_packet_));
  }

  void emit(const int64_t* which, int64_t count, Kind kind, int64_t window = 0) {
    const int64_t packets = (count * width_ + lanes - 1) / lanes;
    plan_.steps.push_back({static_cast<int32_t>(packets), static_cast<int32_t>(count),
                           static_cast<int32_t>(plan_.lower.size()), kind, packets_});
    for (int64_t i = 0; i < count; ++i) {
      plan_.lower.push_back(program_.lower[which[i]]);
      plan_.upper.push_back(program_.upper[which[i]]);
      plan_.slot.push_back(static_cast<int32_t>(packets_ * lanes + i * width_));
    }
    for (int64_t p = 0; p < packets; ++p) plan_.window.push_back(kind == permuted ? windows_[window + p] : Window{});
    packets_ += packets;
  }

  // Whether the wires of a packet's comparators fill two contiguous stretches; if so, keeps how.
  bool add_window(const int64_t* which, std::vector<int64_t>& windowed) {
    std::vector<int32_t> wires;
    for (size_t i = 0; i < per_packet_; ++i) {
      wires.push_back(program_.lower[which[i]]);
      wires.push_back(program_.upper[which[i]]);
    }
    std::sort(wires.begin(), wires.end());
    for (size_t i = 0; i < wires.size(); ++i)
      if (wires[i] != wires[i / per_packet_ * per_packet_] + static_cast<int32_t>(i % per_packet_)) return false;
    std::vector<int32_t> pattern(4 * lanes);
    for (size_t i = 0; i < per_packet_; ++i)
      for (int side = 0; side < 2; ++side) {
        const int32_t wire = (side == 0 ? program_.lower : program_.upper)[which[i]];
        const auto place = std::lower_bound(wires.begin(), wires.end(), wire) - wires.begin();
        for (int64_t w = 0; w < width_; ++w) {
          const int64_t inside = side * lanes + i * width_ + w, outside = place * width_ + w;
          pattern[inside] = static_cast<int32_t>(outside);
          pattern[2 * lanes + outside] = static_cast<int32_t>(inside);
        }
      }
    const auto [known, fresh] = patterns_.emplace(pattern, static_cast<int32_t>(patterns_.size()));
    if (fresh) plan_.pattern.insert(plan_.pattern.end(), pattern.begin(), pattern.end());
    windows_.push_back({static_cast<int32_t>(wires[0] * width_), static_cast<int32_t>(wires[per_packet_] * width_),
                        known->second});
    windowed.insert(windowed.end(), which, which + per_packet_);
    return true;
  }
};

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
  Layout layout(*made, *source, width);
  for (int64_t l = 0; l < source->layers(); ++l) layout.layer(source->layer_begin[l], source->layer_begin[l + 1]);
  const int64_t tape = layout.packets();
  STD_TORCH_CHECK(tape * lanes < (int64_t(1) << 31), "difflayers: the network is too large: ",
                  source->comparators(), " comparators");
  made->view = {call.n, width, source->comparators(), tape, source->layers(),
                static_cast<int64_t>(made->steps.size()), made->steps.data(), made->lower.data(),
                made->upper.data(), made->window.data(), made->pattern.data(), made->slot.data(), nullptr,
                nullptr};
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
  if (h.payload) {
    job.h_payload = data<T>(*h.payload);
    job.h_payload_stride = h.payload->size(0) == 1 ? 0 : h.payload->size(1) * call.m;
  }
  job.result = data<T>(out.of_gradient);
  job.of_scores = data<T>(out.of_scores);
  if (out.of_steepness.numel() > 0) job.of_steepness = data<T>(out.of_steepness);
  job.of_steepness_wanted = job.of_steepness != nullptr;
  if (out.of_payload.numel() > 0) job.of_payload = data<T>(out.of_payload);
  run(call, job, 2);
}

int64_t scratch_bytes(Tensor scores, std::optional<Tensor> payload, Text what, Text network,
                      int64_t first, int64_t last, bool of_steepness, int64_t direction) {
  const Call call = call_of(scores, std::nullopt, payload, what, network, first, last, "cauchy", 0, 1, false);
  const auto plan = plan_for(call, width_for(call, torch::stable::get_num_threads()));
  const auto bytes = [&](auto job) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(job.scores)>>;
    job.plan = &plan->view;
    job.of_steepness_wanted = of_steepness;
    return static_cast<int64_t>(kernels<T>().scratch_bytes(job, static_cast<int>(direction)));
  };
  return call.is_double ? bytes(job_of<double>(call)) : bytes(job_of<float>(call));
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
  library.impl("transport_scratch_bytes", TORCH_BOX(&difflayers::cpu::scratch_bytes));
}
