// Elementary functions for the swaps and scores. On the host, float goes through branch-free polynomials that compilers
// vectorise; double and the device use the standard library. Coefficients: fit_approximations.py.
// Stated bound, tested in tests/sorting/test_kernels.py: every swap's f in float32 is within 3e-7
// of the float64 value, absolutely, for any argument.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DL_HD __host__ __device__ inline
#else
// a call that is left in a loop spills every vector register
#define DL_HD inline __attribute__((always_inline))
#endif

// The CPU kernels are compiled once per instruction set; each gets a namespace of its own, because the linker
// would otherwise merge equal inline functions and might keep the one that this processor cannot run.
#ifndef DL_ISA
#define DL_ISA portable
#endif

namespace difflayers {
inline namespace DL_ISA {

template <class T>
DL_HD T select(bool condition, T a, T b) {
  return condition ? a : b;
}
template <class T>
struct ConditionFor {
  using Type = bool;
};
template <class T>
using ConditionOf = typename ConditionFor<T>::Type;

namespace math {

// A float's bits as an integer and back; pack.h does the same for packs.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Integer = int32_t;
  static DL_HD Integer of(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_int(value);
#else
    Integer bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
  }
  static DL_HD float to_value(Integer bits) {
#ifdef __CUDA_ARCH__
    return __int_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
  }
  static DL_HD float convert(Integer i) { return static_cast<float>(i); }
};

// The functions below come in three kinds: `polynomial::f` for float or a Pack of floats, and f(double),
// f(float) on top of it; pack.h adds the packs.
namespace polynomial {

// coefficients with the highest power first
template <class T, int count>
DL_HD T horner(T x, const float (&coefficients)[count]) {
  T p = T(coefficients[0]);
  for (int i = 1; i < count; ++i) p = p * x + T(coefficients[i]);
  return p;
}

// 2^x for |x| <= 126: x = k + f, the integer k read from the low bits of x + 1.5 * 2^23
template <class T>
DL_HD T power_of_two(T x) {
  const T magic = T(12582912.0f);
  const T shifted = x + magic;
  const T f = (x - (shifted - magic)) * T(0.69314718056f);
  const float coefficients[] = {1.395605829e-03f, 8.375130129e-03f, 4.166608355e-02f, 1.666641546e-01f,
                                5.000000168e-01f, 1.000000038e+00f, 9.999999999e-01f};
  return horner(f, coefficients) * Bits<T>::to_value((Bits<T>::of(shifted) << 23) + 0x3f800000);
}

// exp(-v), v >= 0
template <class T>
DL_HD T exp_of_minus(T v) {
  // below exp(-87) floats are denormal: the result is 0
  const T result = power_of_two(select(v > T(87.0f), T(87.0f), v) * T(-1.44269504089f));
  return select(v > T(87.0f), T(0.0f), result);
}

// arctan(z) / pi, 0 <= z <= 1
template <class T>
DL_HD T arctan_over_pi(T z) {
  const float coefficients[] = {-1.521665660e-03f, 7.816773515e-03f,  -1.906826032e-02f, 3.164878306e-02f,
                                -4.465702922e-02f, 6.357086136e-02f, -1.060993489e-01f, 3.183098580e-01f};
  return horner(z * z, coefficients) * z;
}

// Phi(-v), the upper tail of the standard normal distribution, v >= 0
template <class T>
DL_HD T normal_tail(T v) {
  const float coefficients[] = {-4.236938097e-02f, 2.827267045e-01f, -8.002341271e-01f, 1.206294960e+00f,
                                -9.558711746e-01f, 2.932795247e-01f, -4.819348704e-02f, 1.673106256e-01f,
                                1.974587452e-01f,  1.996012513e-01f, -3.635142821e-06f};
  return horner(T(2.0f) / (T(2.0f) + v), coefficients) * exp_of_minus(T(0.5f) * v * v);
}

// log2(1 + m), sqrt(1/2) <= 1 + m < sqrt(2), with a small relative error around m = 0
template <class T>
DL_HD T log2_of_one_plus(T m) {
  const float coefficients[] = {1.292316735e-01f, -2.089261513e-01f, 2.152192972e-01f,
                                -2.386768972e-01f, 2.879385989e-01f, -3.607162122e-01f,
                                4.809102913e-01f, -7.213471998e-01f, 1.442695005e+00f};
  return horner(m, coefficients) * m;
}

// log2(x), x > 0 normal
template <class T>
DL_HD T log2(T x) {
  // x = 2^k (1 + m) with 1 + m in [sqrt(1/2), sqrt(2))
  const auto offset = Bits<T>::of(x) - 0x3f3504f3;
  const T m = Bits<T>::to_value((offset & 0x007fffff) + 0x3f3504f3) - T(1.0f);
  return log2_of_one_plus(m) + Bits<T>::convert(offset >> 23);
}

// log(x), x > 0 normal
template <class T>
DL_HD T log(T x) {
  return log2(x) * T(0.69314718056f);
}

// log(1 - u), 0 < u < 1, with a small relative error also where u is small
template <class T>
DL_HD T log1p_of_minus(T u) {
  return select(u < T(0.25f), log2_of_one_plus(-u), log2(T(1.0f) - u)) * T(0.69314718056f);
}

// log(1 + y), 0 <= y < 1e37, with a small relative error also where y is small
template <class T>
DL_HD T log1p(T y) {
  return select(y < T(0.25f), log2_of_one_plus(y), log2(T(1.0f) + y)) * T(0.69314718056f);
}

// x^y, x > 0 normal
template <class T>
DL_HD T power(T x, T y) {
  const T exponent = y * log2(x);
  return power_of_two(select(exponent > T(126.0f), T(126.0f), select(exponent < T(-126.0f), T(-126.0f), exponent)));
}

}  // namespace polynomial

template <class T>
DL_HD T reciprocal(T x) {
  return T(1) / x;
}
DL_HD double exp_of_minus(double v) { return std::exp(-v); }
DL_HD double arctan_over_pi(double z) { return std::atan(z) * 0.31830988618379067154; }
DL_HD double normal_tail(double v) { return 0.5 * std::erfc(v * 0.70710678118654752440); }
DL_HD double power(double x, double y) { return std::pow(x, y); }
DL_HD double log1p(double y) { return ::log1p(y); }
DL_HD double sqrt(double x) { return ::sqrt(x); }
DL_HD float sqrt(float x) { return ::sqrtf(x); }

#ifdef __CUDA_ARCH__
DL_HD float exp_of_minus(float v) { return expf(-v); }
DL_HD float arctan_over_pi(float z) { return polynomial::arctan_over_pi(z); }  // atanf reduces its argument
DL_HD float normal_tail(float v) { return 0.5f * erfcf(v * 0.70710678118654752440f); }
DL_HD float power(float x, float y) { return powf(x, y); }
DL_HD float log1p(float y) { return log1pf(y); }
#else
DL_HD float exp_of_minus(float v) { return polynomial::exp_of_minus(v); }
DL_HD float arctan_over_pi(float z) { return polynomial::arctan_over_pi(z); }
DL_HD float normal_tail(float v) { return polynomial::normal_tail(v); }
DL_HD float power(float x, float y) { return polynomial::power(x, y); }
DL_HD float log1p(float y) { return polynomial::log1p(y); }
#endif

}  // namespace math
}  // namespace DL_ISA
}  // namespace difflayers
