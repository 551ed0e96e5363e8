// Real roots of polynomials of low degree, by bracketing: between neighbouring roots of the derivative a polynomial
// is monotone, so each interval holds one root or none, and bisection finds it whatever the coefficients are.
#pragma once

#include <algorithm>
#include <cmath>

namespace difflayers::cpu {

// p[0] + p[1] x + ... + p[degree] x^degree
inline double evaluate(const double* p, int degree, double x) {
  double value = p[degree];
  for (int i = degree - 1; i >= 0; --i) value = value * x + p[i];
  return value;
}

// The root in [low, high], where p has different signs: Newton's steps as long as they stay inside, else halving.
inline double bracketed_root(const double* p, int degree, double low, double high) {
  const bool rising = evaluate(p, degree, high) > 0;
  double x = 0.5 * (low + high);
  for (int step = 0; step < 100; ++step) {
    double value = p[degree], slope = 0;
    for (int i = degree - 1; i >= 0; --i) slope = slope * x + value, value = value * x + p[i];
    (value > 0) == rising ? high = x : low = x;
    const double next = x - value / slope;
    const double to = next > low && next < high ? next : 0.5 * (low + high);
    if (std::abs(to - x) <= 4e-16 * std::abs(x) || !(high > low)) return to;
    x = to;
  }
  return x;
}

// Real roots in ascending order; returns how many. A double root that rounding lifts off the axis is not found;
// callers for whom it matters test the stationary points as well, which are returned in `stationary`.
template <int degree>
int real_roots(const double* p, double* roots, double* stationary = nullptr, int* stationary_count = nullptr) {
  if (stationary_count) *stationary_count = 0;
  if constexpr (degree == 1) {
    if (p[1] == 0) return 0;
    roots[0] = -p[0] / p[1];
    return std::isfinite(roots[0]) ? 1 : 0;
  } else {
    double largest = 0;
    for (int i = 0; i < degree; ++i) largest = std::max(largest, std::abs(p[i]));
    if (!std::isfinite(largest) || !std::isfinite(p[degree])) return 0;
    if (std::abs(p[degree]) <= 1e-14 * largest) return real_roots<degree - 1>(p, roots, stationary, stationary_count);
    double derivative[degree], at[degree + 1];
    for (int i = 1; i <= degree; ++i) derivative[i - 1] = i * p[i];
    const int turns = real_roots<degree - 1>(derivative, at + 1);
    if (stationary) std::copy(at + 1, at + 1 + turns, stationary);
    if (stationary_count) *stationary_count = turns;
    const double bound = 1 + largest / std::abs(p[degree]);  // Cauchy's
    at[0] = -bound;
    at[turns + 1] = bound;
    int count = 0;
    for (int i = 0; i <= turns; ++i) {
      const double low = evaluate(p, degree, at[i]), high = evaluate(p, degree, at[i + 1]);
      if (low == 0) {
        if (count == 0 || roots[count - 1] != at[i]) roots[count++] = at[i];
      } else if ((low < 0) != (high < 0) && high != 0) {
        roots[count++] = bracketed_root(p, degree, at[i], at[i + 1]);
      }
    }
    return count;
  }
}

}  // namespace difflayers::cpu
