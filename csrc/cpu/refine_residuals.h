// Residuals of refined models and their derivatives by the numbers of the model: the formula of each in one place.
// Included by refine_kernels.cpp only, once per instruction set.
//
// A residual has `rows` components, each of which depends on `entries` numbers of the model, those in `index`.
#pragma once

#include "pack.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {
namespace residuals {

using P = Pack<double>;

DL_HD P root(P x) {
  for (int i = 0; i < P::size; ++i) x.v[i] = __builtin_sqrt(x.v[i]);
  return x;
}

// x2' M x1 over the length of its gradient by the point; M is E or F
struct Sampson {
  static constexpr int coordinates = 4, columns = 9, rows = 1, entries = 9;
  static constexpr int index[rows][entries] = {{0, 1, 2, 3, 4, 5, 6, 7, 8}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    const P l0 = m[0] * x[0] + m[1] * x[1] + m[2], l1 = m[3] * x[0] + m[4] * x[1] + m[5];
    const P l2 = m[6] * x[0] + m[7] * x[1] + m[8];
    const P k0 = m[0] * x[2] + m[3] * x[3] + m[6], k1 = m[1] * x[2] + m[4] * x[3] + m[7];
    const P algebraic = x[2] * l0 + x[3] * l1 + l2, square = l0 * l0 + l1 * l1 + k0 * k0 + k1 * k1;
    const P inverse = P(1.0) / root(square);
    r[0] = algebraic * inverse;
    if constexpr (derivative) {
      const P q = algebraic / square, a = q * k0, b = q * k1;
      const P left[3] = {inverse * (x[2] - q * l0), inverse * (x[3] - q * l1), inverse};
      const P right[3] = {inverse * x[2], inverse * x[3], inverse};
      for (int i = 0; i < 3; ++i) {
        J[0][3 * i] = left[i] * x[0] - right[i] * a;
        J[0][3 * i + 1] = left[i] * x[1] - right[i] * b;
        J[0][3 * i + 2] = left[i];
      }
    }
  }
};

// H x1 - x2 in the second image
struct Transfer {
  static constexpr int coordinates = 4, columns = 9, rows = 2, entries = 6;
  static constexpr int index[rows][entries] = {{0, 1, 2, 6, 7, 8}, {3, 4, 5, 6, 7, 8}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    const P inverse = P(1.0) / (m[6] * x[0] + m[7] * x[1] + m[8]);
    const P mapped[2] = {(m[0] * x[0] + m[1] * x[1] + m[2]) * inverse, (m[3] * x[0] + m[4] * x[1] + m[5]) * inverse};
    for (int row = 0; row < 2; ++row) {
      r[row] = mapped[row] - x[2 + row];
      if constexpr (derivative) {
        J[row][0] = x[0] * inverse, J[row][1] = x[1] * inverse, J[row][2] = inverse;
        for (int c = 0; c < 3; ++c) J[row][3 + c] = -(mapped[row] * J[row][c]);
      }
    }
  }
};

// the projection of X by [R | t] minus u, for points (u, v, X, Y, Z); infinite behind the camera
struct Reprojection {
  static constexpr int coordinates = 5, columns = 12, rows = 2, entries = 8;
  static constexpr int index[rows][entries] = {{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 8, 9, 10, 11}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    const P depth = m[8] * x[2] + m[9] * x[3] + m[10] * x[4] + m[11];
    const P inverse = select(depth > P(0.0), P(1.0) / depth, P(__builtin_inf()));
    for (int row = 0; row < 2; ++row) {
      const P* line = m + 4 * row;
      const P mapped = (line[0] * x[2] + line[1] * x[3] + line[2] * x[4] + line[3]) * inverse;
      r[row] = mapped - x[row];
      if constexpr (derivative) {
        for (int c = 0; c < 3; ++c) J[row][c] = x[2 + c] * inverse;
        J[row][3] = inverse;
        for (int c = 0; c < 4; ++c) J[row][4 + c] = -(mapped * J[row][c]);
      }
    }
  }
};

// M X1 + t - X2, for points (X1, X2) and a model [M | t]
struct Rigid {
  static constexpr int coordinates = 6, columns = 12, rows = 3, entries = 4;
  static constexpr int index[rows][entries] = {{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    for (int row = 0; row < 3; ++row) {
      const P* line = m + 4 * row;
      r[row] = line[0] * x[0] + line[1] * x[1] + line[2] * x[2] + line[3] - x[3 + row];
      if constexpr (derivative) {
        for (int c = 0; c < 3; ++c) J[row][c] = x[c];
        J[row][3] = P(1.0);
      }
    }
  }
};

// the distance from a line (size 2) or a plane (size 3): normal . x + offset
template <int size>
struct Hyperplane {
  static constexpr int coordinates = size, columns = size + 1, rows = 1, entries = size + 1;
  static constexpr int index[rows][4] = {{0, 1, 2, 3}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    r[0] = m[size];
    for (int c = 0; c < size; ++c) r[0] = r[0] + m[c] * x[c];
    if constexpr (derivative) {
      for (int c = 0; c < size; ++c) J[0][c] = x[c];
      J[0][size] = P(1.0);
    }
  }
};

// the distance from a circle (center, radius)
struct Circle {
  static constexpr int coordinates = 2, columns = 3, rows = 1, entries = 3;
  static constexpr int index[rows][entries] = {{0, 1, 2}};

  template <bool derivative>
  static DL_HD void at(const P* x, const P* m, P* r, P (*J)[entries]) {
    const P dx = x[0] - m[0], dy = x[1] - m[1], distance = root(dx * dx + dy * dy);
    r[0] = distance - m[2];
    if constexpr (derivative) {
      J[0][0] = -(dx / distance), J[0][1] = -(dy / distance);
      J[0][2] = P(-1.0);
    }
  }
};

}  // namespace residuals
}  // namespace
}  // namespace DL_ISA
}  // namespace difflayers
