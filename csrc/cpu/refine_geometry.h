// What the manifolds of refine_manifolds.h are made of: rotations, the singular value decomposition, frames.
#pragma once

#include <cmath>

#include "small_matrix.h"

namespace difflayers::cpu::refine {

// x -> scale * (x - origin) with an origin for each of two groups of coordinates
struct Frame {
  double origin[2][3] = {}, scale = 1;
};

inline void cross(const double* a, const double* b, double* out) {
  const double values[3] = {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
  std::copy(values, values + 3, out);
}
inline double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline bool normalise(double* a, int count = 3) {
  const double length = small::norm(a, count);
  if (!(length > 0) || !std::isfinite(length)) return false;
  for (int i = 0; i < count; ++i) a[i] /= length;
  return true;
}
// out = a b, out different from both
inline void multiply(const double* a, const double* b, double* out) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) out[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
}
inline void transpose(double* a) {
  std::swap(a[1], a[3]);
  std::swap(a[2], a[6]);
  std::swap(a[5], a[7]);
}
// the rotation by Cayley's map: I + 2 / (1 + |w|^2 / 4) ([w / 2] + [w / 2]^2)
inline void rotation(const double* w, double* out) {
  const double a = w[0] / 2, b = w[1] / 2, c = w[2] / 2, f = 2 / (1 + a * a + b * b + c * c);
  const double values[9] = {1 - f * (b * b + c * c), f * (a * b - c), f * (a * c + b),
                            f * (a * b + c), 1 - f * (a * a + c * c), f * (b * c - a),
                            f * (a * c - b), f * (b * c + a), 1 - f * (a * a + b * b)};
  std::copy(values, values + 9, out);
}
// two unit vectors across the unit vector n
inline void across(const double* n, double* first, double* second) {
  const double axis[3] = {std::abs(n[0]) <= std::abs(n[1]) && std::abs(n[0]) <= std::abs(n[2]) ? 1.0 : 0.0,
                          std::abs(n[1]) < std::abs(n[0]) && std::abs(n[1]) <= std::abs(n[2]) ? 1.0 : 0.0,
                          std::abs(n[2]) < std::abs(n[0]) && std::abs(n[2]) < std::abs(n[1]) ? 1.0 : 0.0};
  cross(n, axis, first);
  normalise(first);
  cross(n, first, second);
}
// n turned towards two unit vectors across it
inline void turn(double* n, const double* step) {
  double first[3], second[3];
  across(n, first, second);
  for (int i = 0; i < 3; ++i) n[i] += step[0] * first[i] + step[1] * second[i];
  normalise(n);
}

// a = left diag(values) right^T by Jacobi rotations of a^T a; rows of left and right are the singular vectors, largest
// first, both right-handed: the last value may be negative. False when a is 0 or of rank 1.
struct Svd {
  double left[9], right[9], value[3];

  bool of(const double* a) {
    double square[9], v[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) square[3 * i + j] = a[i] * a[j] + a[3 + i] * a[3 + j] + a[6 + i] * a[6 + j];
    for (int sweep = 0; sweep < 12; ++sweep) {
      for (int p = 0; p < 2; ++p) {
        for (int q = p + 1; q < 3; ++q) {
          const double off = square[3 * p + q];
          if (off == 0) continue;
          const double theta = (square[4 * q] - square[4 * p]) / (2 * off);
          const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
          const double c = 1 / std::sqrt(t * t + 1), s = t * c;
          for (int i = 0; i < 3; ++i) {
            const double x = square[3 * i + p], y = square[3 * i + q];
            square[3 * i + p] = c * x - s * y, square[3 * i + q] = s * x + c * y;
          }
          for (int i = 0; i < 3; ++i) {
            const double x = square[3 * p + i], y = square[3 * q + i];
            square[3 * p + i] = c * x - s * y, square[3 * q + i] = s * x + c * y;
            const double z = v[3 * p + i], w = v[3 * q + i];
            v[3 * p + i] = c * z - s * w, v[3 * q + i] = s * z + c * w;
          }
        }
      }
    }
    int order[3] = {0, 1, 2};
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2 - i; ++j)
        if (square[4 * order[j]] < square[4 * order[j + 1]]) std::swap(order[j], order[j + 1]);
    for (int i = 0; i < 2; ++i) {
      std::copy(v + 3 * order[i], v + 3 * order[i] + 3, right + 3 * i);
      for (int j = 0; j < 3; ++j) left[3 * i + j] = dot(a + 3 * j, right + 3 * i);
      if (i == 1) {
        const double along = dot(left, left + 3);
        for (int j = 0; j < 3; ++j) left[3 + j] -= along * left[j];
      }
      value[i] = small::norm(left + 3 * i, 3);
      if (!normalise(left + 3 * i)) return false;
    }
    cross(right, right + 3, right + 6);
    cross(left, left + 3, left + 6);
    double image[3];
    for (int j = 0; j < 3; ++j) image[j] = dot(a + 3 * j, right + 6);
    value[2] = dot(left + 6, image);
    return value[1] > 1e-12 * value[0];
  }
};

// m T^-1, and m T, for T: x -> scale * (x - origin) of the plane
inline void times_inverse(double* m, const Frame& frame, int group) {
  const double* origin = frame.origin[group];
  for (double* row = m; row < m + 9; row += 3) {
    row[2] += origin[0] * row[0] + origin[1] * row[1];
    row[0] /= frame.scale, row[1] /= frame.scale;
  }
}
inline void times(double* m, const Frame& frame, int group) {
  const double* origin = frame.origin[group];
  for (double* row = m; row < m + 9; row += 3) {
    row[2] -= frame.scale * (origin[0] * row[0] + origin[1] * row[1]);
    row[0] *= frame.scale, row[1] *= frame.scale;
  }
}

}  // namespace difflayers::cpu::refine
