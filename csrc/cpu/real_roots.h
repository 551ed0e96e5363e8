// The real roots of a polynomial: between neighbouring extrema it is monotone, and the extrema are the roots of its
// derivative, found alike. A change of sign cannot be missed, whereas a Sturm sequence loses roots to rounding.
#pragma once

#include <algorithm>
#include <cmath>

namespace difflayers::cpu::roots {

// sum of c[k] x^k
template <int degree>
double value(const double* c, double x) {
  double result = c[degree];
  for (int k = degree - 1; k >= 0; --k) result = result * x + c[k];
  return result;
}

template <int degree>
void value_and_slope(const double* c, double x, double& f, double& slope) {
  f = c[degree];
  slope = 0;
  for (int k = degree - 1; k >= 0; --k) {
    slope = slope * x + f;
    f = f * x + c[k];
  }
}

// The root in [low, high], where the polynomial changes sign once, from f_low to f_high: Newton's method, bisection
// where it leaves. It stops after a step below `tolerance`, when the error of a simple root is far below that.
template <int degree>
double bracketed(const double* c, double low, double high, double f_low, double f_high, double tolerance) {
  const bool low_is_negative = f_low < 0;
  // between two extrema the polynomial looks like the cubic with slope 0 at both ends; roughly its inverse
  const double s = f_low / (f_low - f_high) - 0.5;
  double x = 0.5 * (low + high) + (high - low) * s * (2 + 4 * s * s) / 3;
  for (int step = 0; step < 100; ++step) {
    double f, slope;
    value_and_slope<degree>(c, x, f, slope);
    if (f == 0) return x;
    ((f < 0) == low_is_negative ? low : high) = x;
    double next = x - f / slope;
    if (!(next > low && next < high)) next = 0.5 * (low + high);
    const double moved = std::abs(next - x);
    x = next;
    if (moved <= tolerance) break;
  }
  return x;
}

// The roots in [-1, 1], ascending, of the polynomial with coefficients c[0 .. degree] of order 1; returns how many.
// An extremum below `touch` times the sum of the coefficients is a root as well.
template <int degree, bool derivative = false>
int within(const double* c, double* found, double touch = 0) {
  if constexpr (degree == 1) {
    const double x = -c[0] / c[1];
    if (!(std::abs(x) <= 1)) return 0;
    found[0] = x;
    return 1;
  } else if constexpr (degree == 2 && derivative) {
    const double square = c[1] * c[1] - 4 * c[2] * c[0];
    if (!(square > 0)) return 0;
    const double q = -0.5 * (c[1] + std::copysign(std::sqrt(square), c[1]));
    const double one = q / c[2], other = c[0] / q, least = std::min(one, other), most = std::max(one, other);
    int count = 0;
    if (std::abs(least) <= 1) found[count++] = least;
    if (std::abs(most) <= 1) found[count++] = most;
    return count;
  } else {
    double slope[degree], extrema[degree + 1];
    double size = 0;
    for (int k = 1; k <= degree; ++k) slope[k - 1] = c[k] * k / degree;
    for (int k = 0; k <= degree; ++k) size += std::abs(c[k]);
    const int inner = within<degree - 1, true>(slope, extrema + 1);
    extrema[0] = -1;
    extrema[inner + 1] = 1;
    int count = 0;
    double f = value<degree>(c, -1);
    for (int i = 0; i <= inner && count < degree; ++i) {
      const double before = f;
      f = value<degree>(c, extrema[i + 1]);
      if ((before < 0) != (f < 0)) {
        found[count++] = bracketed<degree>(c, extrema[i], extrema[i + 1], before, f, derivative ? 1e-5 : 1e-14);
      } else if (!derivative && i < inner && std::abs(f) <= touch * size) {
        found[count++] = extrema[i + 1];
      }
    }
    return count;
  }
}

// All real roots as pairs (x, w) of x / w, |x| <= 1 and |w| <= 1; at most `degree` of them. The coefficients are
// scaled here. `touch` says how near to zero an extremum is a double root that rounding has lifted off the axis.
template <int degree>
int real(const double* coefficients, double (*pairs)[2], double touch = 1e-14) {
  double size = 0, c[degree + 1], found[degree];
  for (int k = 0; k <= degree; ++k) size = std::max(size, std::abs(coefficients[k]));
  if (!(size > 0) || !std::isfinite(size)) return 0;
  for (int k = 0; k <= degree; ++k) c[k] = coefficients[k] / size;
  const int inside = within<degree>(c, found, touch);
  for (int i = 0; i < inside; ++i) pairs[i][0] = found[i], pairs[i][1] = 1;
  std::reverse(c, c + degree + 1);
  const int outside = within<degree>(c, found, touch);
  int count = inside;
  for (int i = 0; i < outside && count < degree; ++i) {
    if (std::abs(found[i]) == 1) continue;  // found above
    pairs[count][0] = 1;
    pairs[count++][1] = found[i];
  }
  return count;
}

}  // namespace difflayers::cpu::roots
