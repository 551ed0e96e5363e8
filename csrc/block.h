// The sorting family for a team of threads that share one row at a time: its job, its memory, and how much of
// that there is. block_row.h holds the algorithm. CUDA kernels and the tests' emulation on the CPU run the very
// same templates; they differ in the executor alone.
//
// An executor stands for the lanes of one team:
//   each(count, f)   f(i, lane) for every i in [0, count), any order, then a barrier for memory
//   any(count, f)    whether f(i) holds for some i in [0, count); the same answer in every lane
//   lanes()          how many lanes there are; equal `lane` arguments are never at work at once
#pragma once

#include <cstddef>
#include <cstdint>

#include "swap.h"

#ifdef __CUDACC__
#define DL_TEAM __device__
#else
#define DL_TEAM
#endif

namespace difflayers {
inline namespace DL_ISA {

// for plain conditions, where both of the general overloads would do
template <class T>
DL_HD Dual<T> select(bool condition, Dual<T> a, Dual<T> b) {
  return condition ? a : b;
}

namespace block {

enum class What : int32_t { values, matrix, carry, carry_transposed };
enum class Pass : int32_t { forward, gradient, curvature };

struct Comparator {
  int32_t lower, upper;
};

// networks.h's Program where the team can read it: layer l is comparators[layer_begin[l] .. layer_begin[l + 1]).
struct Table {
  const Comparator* comparators;
  const int32_t* layer_begin;
  int32_t layers, count;
};

// Bytes of a row's fast memory that its wires may fill, and that its tape may, when it comes after the wires.
struct Limits {
  size_t wires, tape;
};

// One call. Row-major tensors; k = last - first; the payload is [rows, n or k, m].
template <class T>
struct Job {
  Table table;
  What what;
  Pass pass;
  int32_t swap, n, first, last;
  bool hard;
  T parameter, constant;
  int64_t rows, m;
  int64_t payload_stride, h_payload_stride;  // elements from row to row; 0 = shared
  int32_t tile;            // payload columns that travel at a time
  Limits limits;
  const T* scores;
  const T* steepness;  // or null: `constant`
  const T* payload;
  const T* gradient;     // of the loss by the forward result
  const T* h_scores;     // direction of the second derivative
  const T* h_steepness;  // or null
  const T* h_payload;    // or null
  T* result;             // forward result; in `curvature` the derivative by `gradient`, or null
  T* of_scores;
  T* of_steepness;  // or null
  T* of_payload;    // or null

  DL_HD int64_t wanted() const { return last - first; }
  DL_HD int64_t columns() const { return what == What::matrix ? n : what == What::values ? 0 : m; }
};

// Numbers in memory; the tangents of duals lie in a plane of their own.
template <class Num>
struct Array {
  using T = typename NumberOf<Num>::Scalar;
  T* p = nullptr;
  int64_t plane = 0;

  DL_HD Num get(int64_t i) const {
    if constexpr (NumberOf<Num>::planes == 2)
      return {p[i], p[plane + i]};
    else
      return p[i];
  }
  DL_HD void set(int64_t i, Num x) const {
    if constexpr (NumberOf<Num>::planes == 2) {
      p[i] = x.v;
      p[plane + i] = x.t;
    } else {
      p[i] = x;
    }
  }
};

// Hands out a row's memory: the fast kind (shared memory, on a device) up to a limit, else the slow kind.
// Without bases it only counts.
struct Arena {
  char *fast, *slow;
  size_t fast_used = 0, slow_used = 0;

  template <class Num>
  DL_HD Array<Num> take(int64_t count, size_t limit) {
    using T = typename NumberOf<Num>::Scalar;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) * NumberOf<Num>::planes + 15) / 16 * 16;
    const bool fits = fast_used + bytes <= limit;
    char* const base = fits ? fast : slow;
    size_t& used = fits ? fast_used : slow_used;
    char* const piece = base == nullptr ? nullptr : base + used;
    used += bytes;
    return {reinterpret_cast<T*>(piece), count};
  }
};

// What one row needs. Columns of a payload are `stride` apart, an odd number, so that neighbouring columns of
// one wire lie in different banks of shared memory, as neighbouring wires of one column do.
template <class Num>
struct Memory {
  Array<Num> wires;            // [n] the scores on their way forward, then their gradient on its way back
  Array<Num> forward_columns;  // [tile][stride] payload that travels forward
  Array<Num> reverse_columns;  // [tile][stride] payload that travels backward
  Array<Num> partial;          // [lanes] shares of the gradient by steepness
  Array<Num> first_tape;       // [C] e of values; else d
  Array<Num> second_tape;      // [C] r w_s of values; else the mixing weight c
  Array<Num> of_weight;        // [C] gradient by c
  Array<Num> differences;      // [tile][C] of the payload that travels forward
  int64_t stride = 0;

  template <class T>
  DL_HD void place(const Job<T>& job, int32_t lanes, Arena& arena) {
    const bool backwards = job.pass != Pass::forward, columns = job.what != What::values;
    const int64_t count = job.table.count;
    const size_t on_wires = job.limits.wires, on_tape = job.limits.tape;
    stride = job.n | 1;
    wires = arena.take<Num>(job.n, on_wires);
    if (job.of_steepness != nullptr) partial = arena.take<Num>(lanes, on_wires);
    if (columns && (backwards || job.what != What::carry_transposed))
      forward_columns = arena.take<Num>(job.tile * stride, on_wires);
    if (columns && (backwards || job.what == What::carry_transposed))
      reverse_columns = arena.take<Num>(job.tile * stride, on_wires);
    if (columns) second_tape = arena.take<Num>(count, on_tape);
    if (!backwards) return;
    first_tape = arena.take<Num>(count, on_tape);
    if (columns) {
      of_weight = arena.take<Num>(count, on_tape);
      differences = arena.take<Num>(job.tile * count, on_tape);
    } else if (job.of_steepness != nullptr) {
      second_tape = arena.take<Num>(count, on_tape);
    }
  }
};

template <class Num, class T>
Arena measure(const Job<T>& job, int32_t lanes) {
  Arena arena{nullptr, nullptr};
  Memory<Num>().place(job, lanes, arena);
  return arena;
}

// Sets how many payload columns travel at a time. More columns share the cost of reading the weights and of
// the barriers, but need memory: the wires should fit into fast memory (`comfortable` of it, unless a single
// column needs more) and a row's slow memory should stay below `slow_limit`. A tape is never cut up by
// checkpoints: where even one column exceeds that limit, fewer rows are in flight.
template <class Num, class T>
void choose_tile(Job<T>& job, int32_t lanes, size_t comfortable, size_t slow_limit) {
  constexpr int32_t widest = 16;
  const auto largest = [&](size_t wire_limit) {
    for (int32_t tile = widest; tile > 1; tile /= 2) {
      if (tile / 2 >= job.columns()) continue;
      Job<T> tried = job;
      tried.tile = tile;
      tried.limits = {SIZE_MAX, 0};
      const Arena needed = measure<Num>(tried, lanes);
      if (needed.fast_used <= wire_limit && needed.slow_used <= slow_limit) return tile;
    }
    return 1;
  };
  job.tile = largest(comfortable);
  if (job.tile > 1) return;
  Job<T> tried = job;
  tried.limits = {SIZE_MAX, 0};
  if (measure<Num>(tried, lanes).fast_used > job.limits.wires) job.tile = largest(SIZE_MAX);
}

// Calls f with the swap's type.
template <class F>
DL_TEAM void with_swap(int32_t swap, F f) {
  switch (static_cast<SwapKind>(swap)) {
    case SwapKind::logistic: return f(Logistic{});
    case SwapKind::logistic_art: return f(LogisticART{});
    case SwapKind::gaussian: return f(Gaussian{});
    case SwapKind::reciprocal: return f(Reciprocal{});
    case SwapKind::optimal: return f(Optimal{});
    default: return f(Cauchy{});
  }
}

}  // namespace block
}  // namespace DL_ISA
}  // namespace difflayers
