// A short row's values in one thread's registers: the default network, unrolled at compile time.
#pragma once

#include <cstdint>
#include <utility>

#include "block.h"

#ifdef __CUDACC__
#define DL_UNROLL _Pragma("unroll")
#else
#define DL_UNROLL
#endif

namespace difflayers {
inline namespace DL_ISA {
namespace block {

// The comparators of "odd_even_merge" on N wires, in networks.cpp's order; on n <= N wires, N / 2 < n, they are
// those that touch no wire from n on.
template <int N>
struct MergeNetwork {
  template <class F>
  static constexpr void each(F f) {
    for (int size = 1; size < N; size *= 2)
      for (int stride = size; stride >= 1; stride /= 2)
        for (int begin = stride % size; begin + stride < N; begin += 2 * stride)
          for (int a = begin; a < begin + stride && a + stride < N; ++a)
            if (a / (2 * size) == (a + stride) / (2 * size)) f(a, a + stride);
  }
  static constexpr int count_all() {
    int count = 0;
    each([&](int, int) { ++count; });
    return count;
  }
  static constexpr int count = count_all();
  struct List {
    int lower[count], upper[count];
  };
  static constexpr List list_all() {
    List list{};
    int k = 0;
    each([&](int a, int b) {
      list.lower[k] = a;
      list.upper[k] = b;
      ++k;
    });
    return list;
  }
  static constexpr List list = list_all();
};

// Element k of a thread's tape is `stride` apart from the next.
template <class T>
struct ThreadTape {
  T* p;
  int64_t stride;
};

template <int N, class SwapType, class T>
struct RegisterRow {
  using Network = MergeNetwork<N>;
  using All = std::make_integer_sequence<int, Network::count>;
  T steepness, parameter, soft;
  int32_t n;

  // Wires from n on are +inf, which a comparator leaves where it is: the exact swap, in order.
  DL_TEAM void forward(T (&wires)[N]) const { forward_all<false>(wires, {}, All()); }
  DL_TEAM void forward(T (&wires)[N], const ThreadTape<T>& tape) const { forward_all<true>(wires, tape, All()); }
  // from the gradient by the outputs to that by the inputs, with e on the tape
  DL_TEAM void backward(T (&wires)[N], const ThreadTape<T>& tape) const { backward_all(wires, tape, All()); }

 private:
  template <bool keep, int... k>
  DL_TEAM void forward_all(T (&wires)[N], const ThreadTape<T>& tape, std::integer_sequence<int, k...>) const {
    (step<keep, k>(wires[Network::list.lower[k]], wires[Network::list.upper[k]], tape), ...);
  }
  template <int... k>
  DL_TEAM void backward_all(T (&wires)[N], const ThreadTape<T>& tape, std::integer_sequence<int, k...>) const {
    (step_back<Network::count - 1 - k>(wires, tape), ...);
  }

  template <bool keep, int k>
  DL_TEAM void step(T& a, T& b, const ThreadTape<T>& tape) const {
    // compare() of swap.h, with less to compute as the difference of an ordered pair has no sign
    const bool exchanged = b < a;
    const T low = exchanged ? b : a, high = exchanged ? a : b, r = high - low;
    const bool finite = r < T(INFINITY);
    const Pair<T> pair{exchanged, finite, finite ? r : T(0)};
    const Terms<T> t = relax<SwapType>(pair, steepness, parameter);
    const T moved = shift(pair, t, steepness, soft);
    a = low + moved;
    b = high - moved;
    if constexpr (keep) tape.p[k * tape.stride] = signed_e(pair, t);
  }
  template <int k>
  DL_TEAM void step_back(T (&wires)[N], const ThreadTape<T>& tape) const {
    constexpr int lower = Network::list.lower[k], upper = Network::list.upper[k];
    if (upper < n) mix_lean(tape.p[k * tape.stride], wires[lower], wires[upper]);
  }
};

// Whether a job can run in registers: the default network, and the swaps whose unrolled code is short enough
// to be compiled for every size.
template <class T>
bool fits_registers(const Job<T>& job, bool default_network) {
  const SwapKind swap = static_cast<SwapKind>(job.swap);
  return default_network && (swap == SwapKind::cauchy || swap == SwapKind::reciprocal) && job.what == What::values &&
         job.pass != Pass::curvature && job.of_steepness == nullptr && job.first == 0 && job.last == job.n &&
         2 <= job.n && job.n <= 32;
}

// Calls f with the swap's type; see fits_registers.
template <class F>
void with_short_swap(int32_t swap, F f) {
  static_cast<SwapKind>(swap) == SwapKind::reciprocal ? f(Reciprocal()) : f(Cauchy());
}

// Calls f with N / 2 < n <= N as a compile-time constant.
template <class F>
void with_size(int32_t n, F f) {
  if (n <= 2) return f(std::integral_constant<int, 2>());
  if (n <= 4) return f(std::integral_constant<int, 4>());
  if (n <= 8) return f(std::integral_constant<int, 8>());
  if (n <= 16) return f(std::integral_constant<int, 16>());
  return f(std::integral_constant<int, 32>());
}

// One row in registers; `staged` holds its scores, and for a gradient `staged_gradient` that of the outputs.
// The result goes back to the former.
template <int N, class SwapType, bool backwards, class T>
DL_TEAM void run_in_registers(const Job<T>& job, int64_t row, T* staged, const T* staged_gradient,
                              const ThreadTape<T>& tape) {
  const T steepness = job.steepness == nullptr ? job.constant : job.steepness[row];
  const RegisterRow<N, SwapType, T> network{steepness, job.parameter, T(job.hard ? 0 : 1), job.n};
  T wires[N];
  bool broken = false;
  DL_UNROLL
  for (int i = 0; i < N; ++i) {
    wires[i] = i < job.n ? staged[i] : T(INFINITY);
    broken |= wires[i] != wires[i];
  }
  if constexpr (backwards) {
    network.forward(wires, tape);
#ifdef __CUDA_ARCH__
    asm volatile("" ::: "memory");  // the compiler would keep the whole tape in registers, and spill them
#endif
    DL_UNROLL
    for (int i = 0; i < N; ++i) wires[i] = i < job.n ? staged_gradient[i] : T(0);
    network.backward(wires, tape);
  } else {
    network.forward(wires);
  }
  DL_UNROLL
  for (int i = 0; i < N; ++i)
    if (i < job.n) staged[i] = broken ? T(NAN) : wires[i];
}

}  // namespace block
}  // namespace DL_ISA
}  // namespace difflayers
