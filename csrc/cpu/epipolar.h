// What the essential and the fundamental matrix share; 3 x 3 matrices row by row.
#pragma once

#include <algorithm>
#include <cmath>

#include "small_matrix.h"

namespace difflayers::cpu::epipolar {

inline double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline void cross(const double* a, const double* b, double* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

// The matrix of cofactors, the derivative of the determinant.
inline void cofactors(const double* m, double* out) {
  cross(m + 3, m + 6, out);
  cross(m + 6, m, out + 3);
  cross(m, m + 3, out + 6);
}

// The unit vectors left^T m = 0 and m right = 0 of a matrix of rank 2, from its cofactors, a multiple of left right^T;
// false at rank 1.
inline bool null_vectors(const double* cofactor, double* left, double* right) {
  int row = 0, column = 0;
  double rows[3], columns[3];
  for (int i = 0; i < 3; ++i) {
    rows[i] = dot(cofactor + 3 * i, cofactor + 3 * i);
    columns[i] = 0;
    for (int k = 0; k < 3; ++k) columns[i] += cofactor[3 * k + i] * cofactor[3 * k + i];
    if (rows[i] > rows[row]) row = i;
    if (columns[i] > columns[column]) column = i;
  }
  if (!(rows[row] > 0)) return false;
  const double of_row = 1 / std::sqrt(rows[row]), of_column = 1 / std::sqrt(columns[column]);
  for (int i = 0; i < 3; ++i) {
    right[i] = cofactor[3 * row + i] * of_row;
    left[i] = cofactor[3 * i + column] * of_column;
  }
  return true;
}

// out = m (x, y, 1)^T, and m^T (x, y, 1)^T
inline void times(const double* m, double x, double y, double* out) {
  for (int i = 0; i < 3; ++i) out[i] = m[3 * i] * x + m[3 * i + 1] * y + m[3 * i + 2];
}
inline void times_transposed(const double* m, double x, double y, double* out) {
  for (int i = 0; i < 3; ++i) out[i] = m[i] * x + m[3 + i] * y + m[6 + i];
}

// The coefficients of (u, v, 1) m (x, y, 1)^T in the entries of m.
inline void row(double x, double y, double u, double v, double* out) {
  const double values[9] = {u * x, u * y, u, v * x, v * y, v, x, y, 1};
  std::copy(values, values + 9, out);
}

inline bool to_unit_norm(double* m) {
  const double length = small::norm(m, 9);
  if (!(length > 0) || !std::isfinite(length)) return false;
  for (int i = 0; i < 9; ++i) m[i] /= length;
  return true;
}

}  // namespace difflayers::cpu::epipolar
