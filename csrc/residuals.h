// Squared residuals of models and their derivatives: one source for host and device.
//
// A residual's `coefficients` are what expand() makes of a model's `parameters`, once a model and in float64.
// squared() may be called on anything: where it divides by zero, overflows, or meets NaN, the result is infinite or NaN
// and the caller ignores both it and what backward() then says. backward() sets the derivative of g * squared by the
// coefficients and by the point. T is a number or a Pack of them (cpu/pack.h).
#pragma once

#include "approximations.h"

namespace difflayers {
inline namespace DL_ISA {
namespace residuals {

template <int count>
struct Plain {
  static constexpr int parameters = count, coefficients = count;
  static DL_HD void expand(const double* model, double* out) {
    for (int i = 0; i < count; ++i) out[i] = model[i];
  }
  static DL_HD void contract(const double*, const double* of_coefficients, double* of_model) {
    for (int i = 0; i < count; ++i) of_model[i] = of_coefficients[i];
  }
};

// Points (x, y, u, v) and the algebraic error e = (u, v, 1) F (x, y, 1)^T with its lines l = F x1 and m = F^T x2.
template <class T>
struct Epipolar : Plain<9> {
  static constexpr int coordinates = 4;
  T l0, l1, m0, m1, e;

  DL_HD void measure(const T* f, const T* x) {
    l0 = f[0] * x[0] + f[1] * x[1] + f[2];
    l1 = f[3] * x[0] + f[4] * x[1] + f[5];
    m0 = f[0] * x[2] + f[3] * x[3] + f[6];
    m1 = f[1] * x[2] + f[4] * x[3] + f[7];
    e = x[2] * l0 + x[3] * l1 + (f[6] * x[0] + f[7] * x[1] + f[8]);
  }
  // from the derivatives by e, and by l and m: of_l (l0, l1), of_m (m0, m1)
  DL_HD void differentiate(T of_e, T of_l, T of_m, const T* f, const T* x, T* of_f, T* of_x) const {
    const T g0 = of_e * x[2] + of_l * l0, g1 = of_e * x[3] + of_l * l1, h0 = of_m * m0, h1 = of_m * m1;
    of_f[0] = g0 * x[0] + h0 * x[2];
    of_f[1] = g0 * x[1] + h1 * x[2];
    of_f[2] = g0;
    of_f[3] = g1 * x[0] + h0 * x[3];
    of_f[4] = g1 * x[1] + h1 * x[3];
    of_f[5] = g1;
    of_f[6] = of_e * x[0] + h0;
    of_f[7] = of_e * x[1] + h1;
    of_f[8] = of_e;
    of_x[0] = f[0] * g0 + f[3] * g1 + f[6] * of_e;
    of_x[1] = f[1] * g0 + f[4] * g1 + f[7] * of_e;
    of_x[2] = of_e * l0 + f[0] * h0 + f[1] * h1;
    of_x[3] = of_e * l1 + f[3] * h0 + f[4] * h1;
  }
};

// e^2 / (|l|^2 + |m|^2), to first order the squared distance of the pair from the nearest one with e = 0
template <class T>
struct Sampson : Epipolar<T> {
  T inverse;

  DL_HD T squared(const T* f, const T* x) {
    this->measure(f, x);
    inverse = math::reciprocal(this->l0 * this->l0 + this->l1 * this->l1 + this->m0 * this->m0 + this->m1 * this->m1);
    return this->e * this->e * inverse;
  }
  DL_HD void backward(T g, const T* f, const T* x, T* of_f, T* of_x) const {
    const T of_e = T(2) * g * this->e * inverse, of_lines = -of_e * this->e * inverse;
    this->differentiate(of_e, of_lines, of_lines, f, x, of_f, of_x);
  }
};

// e^2 / |l|^2 + e^2 / |m|^2, the sum of the squared distances from the two epipolar lines
template <class T>
struct SymmetricEpipolar : Epipolar<T> {
  T of_second, of_first;

  DL_HD T squared(const T* f, const T* x) {
    this->measure(f, x);
    of_second = math::reciprocal(this->l0 * this->l0 + this->l1 * this->l1);
    of_first = math::reciprocal(this->m0 * this->m0 + this->m1 * this->m1);
    return this->e * this->e * (of_second + of_first);
  }
  DL_HD void backward(T g, const T* f, const T* x, T* of_f, T* of_x) const {
    const T twice = T(2) * g * this->e, a = this->e * of_second, b = this->e * of_first;
    this->differentiate(twice * (of_second + of_first), -twice * a * of_second, -twice * b * of_first, f, x, of_f, of_x);
  }
};

// The squared distance of (u, v) from the image of (x, y); infinite where that is at infinity.
template <class T>
struct Projective {
  T inverse, px, py, dx, dy;

  DL_HD T squared(const T* h, T x, T y, T u, T v) {
    inverse = math::reciprocal(h[6] * x + h[7] * y + h[8]);
    px = (h[0] * x + h[1] * y + h[2]) * inverse;
    py = (h[3] * x + h[4] * y + h[5]) * inverse;
    dx = px - u;
    dy = py - v;
    return dx * dx + dy * dy;
  }
  DL_HD void backward(T g, const T* h, T x, T y, T* of_h, T& of_x, T& of_y, T& of_u, T& of_v) const {
    const T gx = T(2) * g * dx, gy = T(2) * g * dy;
    const T a = gx * inverse, b = gy * inverse, w = -(gx * px + gy * py) * inverse;
    const T rows[3] = {a, b, w};
    for (int i = 0; i < 3; ++i) {
      of_h[3 * i] = rows[i] * x;
      of_h[3 * i + 1] = rows[i] * y;
      of_h[3 * i + 2] = rows[i];
    }
    of_x = h[0] * a + h[3] * b + h[6] * w;
    of_y = h[1] * a + h[4] * b + h[7] * w;
    of_u = -gx;
    of_v = -gy;
  }
};

template <class T>
struct Transfer : Plain<9> {
  static constexpr int coordinates = 4;
  Projective<T> forth;

  DL_HD T squared(const T* h, const T* x) { return forth.squared(h, x[0], x[1], x[2], x[3]); }
  DL_HD void backward(T g, const T* h, const T* x, T* of_h, T* of_x) const {
    forth.backward(g, h, x[0], x[1], of_h, of_x[0], of_x[1], of_x[2], of_x[3]);
  }
};

// The transfer errors in both images; the way back is the adjugate of H, which is its inverse up to scale.
template <class T>
struct SymmetricTransfer {
  static constexpr int parameters = 9, coefficients = 18, coordinates = 4;
  Projective<T> forth, back;

  static DL_HD void expand(const double* h, double* out) {
    for (int i = 0; i < 9; ++i) out[i] = h[i];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const int a = (j + 1) % 3, b = (j + 2) % 3, c = (i + 1) % 3, d = (i + 2) % 3;
        out[9 + 3 * i + j] = h[3 * a + c] * h[3 * b + d] - h[3 * a + d] * h[3 * b + c];
      }
  }
  static DL_HD void contract(const double* h, const double* g, double* of_h) {
    for (int i = 0; i < 9; ++i) of_h[i] = g[i];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const int a = (j + 1) % 3, b = (j + 2) % 3, c = (i + 1) % 3, d = (i + 2) % 3;
        const double one = g[9 + 3 * i + j];
        of_h[3 * a + c] += one * h[3 * b + d];
        of_h[3 * b + d] += one * h[3 * a + c];
        of_h[3 * a + d] -= one * h[3 * b + c];
        of_h[3 * b + c] -= one * h[3 * a + d];
      }
  }
  DL_HD T squared(const T* h, const T* x) {
    return forth.squared(h, x[0], x[1], x[2], x[3]) + back.squared(h + 9, x[2], x[3], x[0], x[1]);
  }
  DL_HD void backward(T g, const T* h, const T* x, T* of_h, T* of_x) const {
    T by_x, by_y, by_u, by_v;
    forth.backward(g, h, x[0], x[1], of_h, of_x[0], of_x[1], of_x[2], of_x[3]);
    back.backward(g, h + 9, x[2], x[3], of_h + 9, by_u, by_v, by_x, by_y);
    of_x[0] = of_x[0] + by_x;
    of_x[1] = of_x[1] + by_y;
    of_x[2] = of_x[2] + by_u;
    of_x[3] = of_x[3] + by_v;
  }
};

// (n . x + c)^2 for a unit normal n: a line in the plane, a plane in space
template <class T, int dimensions>
struct Hyperplane : Plain<dimensions + 1> {
  static constexpr int coordinates = dimensions;
  T distance;

  DL_HD T squared(const T* m, const T* x) {
    distance = m[dimensions];
    for (int i = 0; i < dimensions; ++i) distance = distance + m[i] * x[i];
    return distance * distance;
  }
  DL_HD void backward(T g, const T* m, const T* x, T* of_m, T* of_x) const {
    const T twice = T(2) * g * distance;
    for (int i = 0; i < dimensions; ++i) {
      of_m[i] = twice * x[i];
      of_x[i] = twice * m[i];
    }
    of_m[dimensions] = twice;
  }
};
template <class T>
using Line = Hyperplane<T, 2>;
template <class T>
using Plane = Hyperplane<T, 3>;

// (|x - centre| - radius)^2
template <class T>
struct Circle : Plain<3> {
  static constexpr int coordinates = 2;
  T dx, dy, length, difference;

  DL_HD T squared(const T* m, const T* x) {
    dx = x[0] - m[0];
    dy = x[1] - m[1];
    length = math::sqrt(dx * dx + dy * dy);
    difference = length - m[2];
    return difference * difference;
  }
  DL_HD void backward(T g, const T*, const T*, T* of_m, T* of_x) const {
    const T twice = T(2) * g * difference;
    // at the centre the distance has no derivative
    const T each = select(length > T(0), twice / length, T(0));
    of_x[0] = each * dx;
    of_x[1] = each * dy;
    of_m[0] = -of_x[0];
    of_m[1] = -of_x[1];
    of_m[2] = -twice;
  }
};

// |A s + t - d|^2 for the model [A | t] and points (s, d)
template <class T>
struct Rigid : Plain<12> {
  static constexpr int coordinates = 6;
  T off[3];

  DL_HD T squared(const T* m, const T* x) {
    for (int i = 0; i < 3; ++i)
      off[i] = m[4 * i] * x[0] + m[4 * i + 1] * x[1] + m[4 * i + 2] * x[2] + m[4 * i + 3] - x[3 + i];
    return off[0] * off[0] + off[1] * off[1] + off[2] * off[2];
  }
  DL_HD void backward(T g, const T* m, const T* x, T* of_m, T* of_x) const {
    const T twice[3] = {T(2) * g * off[0], T(2) * g * off[1], T(2) * g * off[2]};
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) of_m[4 * i + j] = twice[i] * x[j];
      of_m[4 * i + 3] = twice[i];
      of_x[i] = twice[0] * m[i] + twice[1] * m[4 + i] + twice[2] * m[8 + i];
      of_x[3 + i] = -twice[i];
    }
  }
};

// The squared distance of (u, v) from the image of (X, Y, Z) under [R | t]; infinite behind the camera.
template <class T>
struct Reprojection : Plain<12> {
  static constexpr int coordinates = 5;
  T inverse, px, py, dx, dy;

  static DL_HD T row(const T* m, const T* x) { return m[0] * x[2] + m[1] * x[3] + m[2] * x[4] + m[3]; }
  DL_HD T squared(const T* m, const T* x) {
    const T depth = row(m + 8, x);
    inverse = math::reciprocal(depth);
    px = row(m, x) * inverse;
    py = row(m + 4, x) * inverse;
    dx = px - x[0];
    dy = py - x[1];
    return select(depth > T(0), dx * dx + dy * dy, T(INFINITY));
  }
  DL_HD void backward(T g, const T* m, const T* x, T* of_m, T* of_x) const {
    const T gx = T(2) * g * dx, gy = T(2) * g * dy;
    const T rows[3] = {gx * inverse, gy * inverse, -(gx * px + gy * py) * inverse};
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) of_m[4 * i + j] = rows[i] * x[2 + j];
      of_m[4 * i + 3] = rows[i];
      of_x[2 + i] = rows[0] * m[i] + rows[1] * m[4 + i] + rows[2] * m[8 + i];
    }
    of_x[0] = -gx;
    of_x[1] = -gy;
  }
};

}  // namespace residuals
}  // namespace DL_ISA
}  // namespace difflayers
