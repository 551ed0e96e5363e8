// Pack<T>: as many numbers as a vector register of this instruction set holds, with the arithmetic of one.
//
// GCC's and Clang's vector extension; the compiler picks the instructions. (Loops over scalars were tried first:
// GCC 12 does not if-convert the swaps and leaves them scalar.) Include before swap.h, whose templates call
// the functions declared here.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../approximations.h"

#if defined(__AVX512F__)
#define DL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DL_VECTOR_BYTES 32
#else
#define DL_VECTOR_BYTES 16
#endif

namespace difflayers {
inline namespace DL_ISA {

template <class S>
struct Vectors;
template <>
struct Vectors<float> {
  typedef float Value __attribute__((vector_size(DL_VECTOR_BYTES)));
  typedef int32_t Integer __attribute__((vector_size(DL_VECTOR_BYTES)));
};
template <>
struct Vectors<double> {
  typedef double Value __attribute__((vector_size(DL_VECTOR_BYTES)));
  typedef int64_t Integer __attribute__((vector_size(DL_VECTOR_BYTES)));
};

// The sum of a vector's elements by halves, in log2(size) steps.
template <class V>
DL_HD auto sum_of(V v) {
  using S = decltype(v[0] + v[0]);
  constexpr int size = sizeof(V) / sizeof(S);
  if constexpr (size == 16) {
    return sum_of(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (size == 8) {
    return sum_of(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else if constexpr (size == 4) {
    return sum_of(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  } else {
    return v[0] + v[1];
  }
}

template <class S>
struct Mask {
  typename Vectors<S>::Integer m;
};

template <class S>
struct Pack {
  using Value = typename Vectors<S>::Value;
  static constexpr int size = DL_VECTOR_BYTES / sizeof(S);
  // whether one instruction picks any 16 elements out of two packs
  static constexpr bool permutes = DL_VECTOR_BYTES == 64 && sizeof(S) == 4;
  Value v;

  Pack() = default;
  DL_HD explicit Pack(Value value) : v(value) {}
  template <class X>
  DL_HD explicit Pack(X x) : v(Value{} + static_cast<S>(x)) {}

  static DL_HD Pack load(const S* from) {
    Pack p;
    __builtin_memcpy(&p.v, from, sizeof p.v);
    return p;
  }
  DL_HD void store(S* to) const { __builtin_memcpy(to, &v, sizeof v); }
  DL_HD S sum() const { return sum_of(v); }
  // element i is element index[i] of this pack followed by `other`
  DL_HD Pack permute(Pack other, const int32_t* index) const {
    typename Vectors<S>::Integer at;
    __builtin_memcpy(&at, index, sizeof at);
    Pack p;
#ifdef __clang__
    for (int i = 0; i < size; ++i) p.v[i] = at[i] < size ? v[at[i]] : other.v[at[i] - size];
#else
    p.v = __builtin_shuffle(v, other.v, at);
#endif
    return p;
  }
};

template <class S>
struct ConditionFor<Pack<S>> {
  using Type = Mask<S>;
};

#define DL_PACK_OPERATOR(op)                              \
  template <class S>                                      \
  DL_HD Pack<S> operator op(Pack<S> a, Pack<S> b) {      \
    return Pack<S>(a.v op b.v);                           \
  }
DL_PACK_OPERATOR(+)
DL_PACK_OPERATOR(-)
DL_PACK_OPERATOR(*)
DL_PACK_OPERATOR(/)
#undef DL_PACK_OPERATOR
template <class S>
DL_HD Pack<S> operator-(Pack<S> a) {
  return Pack<S>(-a.v);
}
template <class S>
DL_HD Mask<S> operator<(Pack<S> a, Pack<S> b) {
  return {a.v < b.v};
}
template <class S>
DL_HD Mask<S> operator>(Pack<S> a, Pack<S> b) {
  return {a.v > b.v};
}
template <class S>
DL_HD Mask<S> operator!=(Pack<S> a, Pack<S> b) {
  return {a.v != b.v};
}
template <class S>
DL_HD Pack<S> select(Mask<S> condition, Pack<S> a, Pack<S> b) {
  return Pack<S>(condition.m ? a.v : b.v);
}

// Whether the condition holds anywhere in the pack.
template <class S>
DL_HD bool any(Mask<S> condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(condition.m)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(condition.m)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(condition.m)) != 0;
#else
  bool found = false;
  for (int i = 0; i < Pack<S>::size; ++i) found |= condition.m[i] != 0;
  return found;
#endif
}

namespace math {

template <>
struct Bits<Pack<float>> {
  using Integer = Vectors<float>::Integer;
  static DL_HD Integer of(Pack<float> x) { return reinterpret_cast<Integer>(x.v); }
  static DL_HD Pack<float> to_value(Integer bits) { return Pack<float>(reinterpret_cast<Vectors<float>::Value>(bits)); }
  static DL_HD Pack<float> convert(Integer i) { return Pack<float>(__builtin_convertvector(i, Vectors<float>::Value)); }
};

#ifdef __AVX512F__
// 1 / x for x > 0 within 2 units in the last place, 0 above 1e37: division would be the slowest part of a swap
DL_HD Pack<float> reciprocal(Pack<float> x) {
  const Pack<float> guess(_mm512_maskz_rcp14_ps(0xffff, x.v));
  return select(x > Pack<float>(1e37f), Pack<float>(0.0f), guess * (Pack<float>(2.0f) - x * guess));
}
#endif

#define DL_PACK_FUNCTION(f)                                          \
  DL_HD Pack<float> f(Pack<float> x) { return polynomial::f(x); }   \
  DL_HD Pack<double> f(Pack<double> x) {                            \
    for (int i = 0; i < Pack<double>::size; ++i) x.v[i] = f(x.v[i]); \
    return x;                                                        \
  }
DL_PACK_FUNCTION(exp_of_minus)
DL_PACK_FUNCTION(arctan_over_pi)
DL_PACK_FUNCTION(normal_tail)
DL_PACK_FUNCTION(log1p)
#undef DL_PACK_FUNCTION
// the instruction is exact; a compiler does not find it in a loop over elements
#if defined(__AVX512F__)
DL_HD Pack<float> sqrt(Pack<float> x) { return Pack<float>(_mm512_maskz_sqrt_ps(0xffff, x.v)); }
DL_HD Pack<double> sqrt(Pack<double> x) { return Pack<double>(_mm512_maskz_sqrt_pd(0xff, x.v)); }
#elif defined(__AVX2__)
DL_HD Pack<float> sqrt(Pack<float> x) { return Pack<float>(_mm256_sqrt_ps(x.v)); }
DL_HD Pack<double> sqrt(Pack<double> x) { return Pack<double>(_mm256_sqrt_pd(x.v)); }
#elif defined(__SSE2__)
DL_HD Pack<float> sqrt(Pack<float> x) { return Pack<float>(_mm_sqrt_ps(x.v)); }
DL_HD Pack<double> sqrt(Pack<double> x) { return Pack<double>(_mm_sqrt_pd(x.v)); }
#else
template <class S>
DL_HD Pack<S> sqrt(Pack<S> x) {
  for (int i = 0; i < Pack<S>::size; ++i) x.v[i] = sqrt(S(x.v[i]));
  return x;
}
#endif
DL_HD Pack<float> log(Pack<float> x) { return polynomial::log(x); }
DL_HD Pack<float> log1p_of_minus(Pack<float> u) { return polynomial::log1p_of_minus(u); }
DL_HD Pack<float> power(Pack<float> x, Pack<float> y) { return polynomial::power(x, y); }
DL_HD Pack<double> power(Pack<double> x, Pack<double> y) {
  for (int i = 0; i < Pack<double>::size; ++i) x.v[i] = power(double(x.v[i]), double(y.v[i]));
  return x;
}

}  // namespace math
}  // namespace DL_ISA
}  // namespace difflayers
