// The vectors across given ones, by Householder reflections.
#pragma once

#include <algorithm>
#include <cmath>

namespace difflayers::cpu::small {

// An orthonormal basis [n - rows, n] of what is orthogonal to the rows of a [rows, n], which is overwritten. False when
// the rows are linearly dependent: the longest of those left is pivoted to, so its length tells the distance from that.
template <int rows, int n>
bool null_space(double* a, double* basis) {
  double largest = 0;
  for (int k = 0; k < rows; ++k) {
    int pivot = k;
    double square = -1;
    for (int i = k; i < rows; ++i) {
      double sum = 0;
      for (int j = k; j < n; ++j) sum += a[i * n + j] * a[i * n + j];
      if (sum > square || i == k) pivot = i, square = sum;
    }
    if (pivot != k) std::swap_ranges(a + k * n, a + (k + 1) * n, a + pivot * n);
    const double length = std::sqrt(square);
    if (k == 0) largest = length;
    if (!(length > 1e-12 * largest) || !std::isfinite(length)) return false;
    // the reflection I - 2 v v^T / |v|^2 that maps the row's tail to an axis; v is kept in the row, scaled so that
    // 2 / |v|^2 = 1
    double* v = a + k * n;
    v[k] += v[k] < 0 ? -length : length;
    const double scale = 1 / std::sqrt(length * std::abs(v[k]));
    for (int j = k; j < n; ++j) v[j] *= scale;
    for (int i = k + 1; i < rows; ++i) {
      double along = 0;
      for (int j = k; j < n; ++j) along += v[j] * a[i * n + j];
      for (int j = k; j < n; ++j) a[i * n + j] -= along * v[j];
    }
  }
  for (int i = 0; i < n - rows; ++i) {
    double* out = basis + i * n;
    std::fill(out, out + n, 0.0);
    out[rows + i] = 1;
    for (int k = rows - 1; k >= 0; --k) {
      const double* v = a + k * n;
      double along = 0;
      for (int j = k; j < n; ++j) along += v[j] * out[j];
      for (int j = k; j < n; ++j) out[j] -= along * v[j];
    }
  }
  return true;
}

}  // namespace difflayers::cpu::small
