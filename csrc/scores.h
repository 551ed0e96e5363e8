// What a point adds to a model's score, as a function s of its ratio = squared residual / squared scale, and the
// derivative of s: one source for host and device. See difflayers/ransac/scorers/ for the formulas.
//
// s falls from 1 at 0 to 0 at `cutoff`. Callers give points at or beyond the cutoff, and those whose ratio is NaN, the
// score 0 and the slope 0 whatever these functions say there. Stated bound, tested in tests/ransac/test_scoring_kernels:
// in float32, s and its slope are within 3e-6 of their float64 values, absolutely.
#pragma once

#include "approximations.h"

namespace difflayers {
inline namespace DL_ISA {
namespace scorers {

struct Count {
  static constexpr double cutoff = 1;
  static constexpr bool cheap = true, differentiable = false;
  explicit DL_HD Count(double) {}
  template <class T>
  DL_HD T value(T) const {
    return T(1);
  }
  template <class T>
  DL_HD T slope(T) const {
    return T(0);
  }
};

struct Msac {
  static constexpr double cutoff = 1;
  static constexpr bool cheap = true, differentiable = true;
  explicit DL_HD Msac(double) {}
  template <class T>
  DL_HD T value(T ratio) const {
    return T(1) - ratio;
  }
  template <class T>
  DL_HD T slope(T) const {
    return T(-1);
  }
};

// log(1 + exp(-ratio / 2) / c) / log(1 + 1 / c) for the parameter c; the scale is sigma
struct GaussianUniform {
  static constexpr double cutoff = 174;  // exp(-87) = 1.6e-38, the smallest normal float32
  static constexpr bool cheap = false, differentiable = true;
  double inverse, norm;

  explicit DL_HD GaussianUniform(double c) : inverse(1 / c), norm(1 / ::log1p(1 / c)) {}
  template <class T>
  DL_HD T value(T ratio) const {
    return T(norm) * math::log1p(T(inverse) * math::exp_of_minus(T(0.5) * ratio));
  }
  template <class T>
  DL_HD T slope(T ratio) const {
    const T odds = T(inverse) * math::exp_of_minus(T(0.5) * ratio);
    return T(-0.5 * norm) * odds / (T(1) + odds);
  }
};

// 1 - rho(r) / rho(k sigma) with the loss rho of MAGSAC++ for 4 degrees of freedom and k = 3.64; the scale is k sigma.
// With x = r^2 / (2 sigma^2) and upper incomplete gamma functions G, rho is proportional to
// (Gamma(5/2) - G(5/2, x)) / 2 + x (G(3/2, x) - G(3/2, k^2 / 2)) / 2, and its derivative to (G(3/2, x) - ...) / 2.
struct Magsac {
  static constexpr double cutoff = 1;
  static constexpr bool cheap = false, differentiable = true;
  static constexpr double k = 3.64, at_cutoff = 0.0036572608340910747;  // G(3/2, k^2 / 2)
  static constexpr double most = 0.6506132770249436;                     // rho(k sigma) on this scale

  explicit DL_HD Magsac(double) {}
  template <class T>
  struct Gamma {
    T x, tail, rest;  // tail = G(3/2, x) = rest + sqrt(pi) Phi(-sqrt(2 x)), rest = sqrt(x) exp(-x)
  };
  template <class T>
  static DL_HD Gamma<T> gamma(T ratio) {
    const T v = T(k) * math::sqrt(ratio), x = T(0.5) * v * v;
    const T rest = T(0.70710678118654752440) * v * math::exp_of_minus(x);
    return {x, rest + T(1.7724538509055159) * math::normal_tail(v), rest};
  }
  template <class T>
  DL_HD T value(T ratio) const {
    const Gamma<T> g = gamma(ratio);
    // G(5/2, x) = 3/2 G(3/2, x) + x^(3/2) exp(-x)
    const T loss = T(1.329340388179137) - T(1.5) * g.tail - g.x * g.rest + g.x * (g.tail - T(at_cutoff));
    return T(1) - T(0.5 / most) * loss;
  }
  template <class T>
  DL_HD T slope(T ratio) const {
    return T(-0.25 * k * k / most) * (gamma(ratio).tail - T(at_cutoff));
  }
};

}  // namespace scorers
}  // namespace DL_ISA
}  // namespace difflayers
