// Dense linear algebra for the few rows of a minimal problem; matrices are row by row, sizes known when compiled.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

namespace difflayers::cpu::small {

// a x = b for `columns` right-hand sides; a [n, n] and b [n, columns] are overwritten, b with x. Partial pivoting;
// false when a pivot is 0 or not finite.
template <int n, int columns>
bool solve(double* a, double* b) {
  for (int k = 0; k < n; ++k) {
    int pivot = k;
    for (int i = k + 1; i < n; ++i)
      if (std::abs(a[i * n + k]) > std::abs(a[pivot * n + k])) pivot = i;
    const double value = a[pivot * n + k];
    if (!(std::abs(value) > 0) || !std::isfinite(value)) return false;
    if (pivot != k) {
      std::swap_ranges(a + k * n + k, a + (k + 1) * n, a + pivot * n + k);
      std::swap_ranges(b + k * columns, b + (k + 1) * columns, b + pivot * columns);
    }
    for (int i = k + 1; i < n; ++i) {
      const double factor = a[i * n + k] / value;
      for (int j = k + 1; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
      for (int j = 0; j < columns; ++j) b[i * columns + j] -= factor * b[k * columns + j];
    }
  }
  for (int k = n - 1; k >= 0; --k) {
    for (int j = 0; j < columns; ++j) {
      double sum = b[k * columns + j];
      for (int i = k + 1; i < n; ++i) sum -= a[k * n + i] * b[i * columns + j];
      b[k * columns + j] = sum / a[k * n + k];
    }
  }
  return true;
}

// The inverse of a [n, n], which is overwritten; false when singular.
template <int n>
bool invert(double* a, double* inverse) {
  std::fill(inverse, inverse + n * n, 0.0);
  for (int i = 0; i < n; ++i) inverse[i * n + i] = 1;
  return solve<n, n>(a, inverse);
}

inline double norm(const double* x, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += x[i] * x[i];
  return std::sqrt(sum);
}

}  // namespace difflayers::cpu::small
