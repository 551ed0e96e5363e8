// What the instruction-set independent half (sorting.cpp) and the kernels (sorting_kernels.cpp, compiled once
// per instruction set) share. Plain data and function pointers only: nothing here may emit code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace difflayers::cpu {

constexpr int lanes = 16;  // one packet: 16 / width comparators of `width` samples

enum class What { values, matrix, carry, carry_transposed };

// How a step's packets come out of the wires. Direct: comparators (a + i, b + i), both sides contiguous. Permuted:
// the wires of a packet fill two stretches of 16 elements, whose elements are then put in order. Gathered: one by
// one. Where no instruction permutes, permuted steps are gathered.
enum Kind : int32_t { direct, permuted, gathered };

// Part of a layer.
struct Step {
  int32_t packets;
  int32_t count;       // comparators
  int32_t comparator;  // index of the first one
  Kind kind;
  int64_t tape;  // packets before this step
};

// A permuted packet: the first elements of its stretches, and the pattern that takes them to the two sides and back.
struct Window {
  int32_t a, b, pattern;
};

// A network laid out for tiles of `width` samples; wire i of sample w is element i * width + w.
struct Plan {
  int64_t n;
  int64_t width;
  int64_t comparators, packets, layers, steps;
  const Step* step;
  const int32_t* lower;
  const int32_t* upper;
  const Window* window;    // of each packet, where permuted
  const int32_t* pattern;  // four indices of 16 each: stretches -> lower, upper side; sides -> stretches a, b
  const int32_t* slot;  // tape element of comparator k, sample 0 of the tile
  // For the matrix, the comparators reached from each tile of 16 columns; null where that would be too long.
  const int32_t* reach;
  const int64_t* reach_begin;
};

// The comparators that act on something other than zeros when only wires [begin, end) enter non-zero, into
// `visited`; `active` is scratch of n. Defined in sorting.cpp.
int64_t reach(const Plan& plan, int64_t begin, int64_t end, char* active, int32_t* visited);

// One call. Row-major tensors; k = last - first; the payload is [rows, n or k, m].
template <class T>
struct Job {
  const Plan* plan;
  What what;
  int32_t swap;
  bool hard, of_steepness_wanted, by_column;
  T parameter, constant;
  int64_t rows, first, last, m;
  int64_t payload_stride, h_payload_stride;  // elements from row to row; 0 = shared
  const T* scores;
  const T* steepness;  // or null: `constant`
  const T* payload;
  const T* gradient;     // of the loss by the forward result
  const T* h_scores;     // direction of the second derivative
  const T* h_steepness;  // or null
  const T* h_payload;    // or null
  T* result;             // forward result; in `curvature` the derivative by `gradient`
  T* of_scores;
  T* of_steepness;  // or null
  T* of_payload;    // or null
};

template <class T>
struct Kernels {
  // Each works on one tile of plan->width rows in a scratch of scratch_bytes(job, which), 64-byte aligned.
  void (*forward)(const Job<T>&, int64_t tile, void* scratch);
  void (*gradient)(const Job<T>&, int64_t tile, void* scratch);
  void (*curvature)(const Job<T>&, int64_t tile, void* scratch);
  size_t (*scratch_bytes)(const Job<T>&, int which);  // 0 forward, 1 gradient, 2 curvature
};

struct KernelSet {
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet* kernels_baseline();
const KernelSet* kernels_avx2();
const KernelSet* kernels_avx512();

}  // namespace difflayers::cpu
