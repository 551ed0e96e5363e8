// The manifolds on which refined models live: a state, its tangent, a step along it.
//
//   struct Manifold {
//     static constexpr int coordinates, columns, freedom;  // of a point, numbers in a model, degrees of freedom
//     static constexpr RefineResidual residual;
//     static constexpr bool homogeneous;                   // whether the model's scale is free
//     static constexpr int group[coordinates];             // 0 or 1: which of the frame's origins moves the coordinate;
//                                                          // -1: it stays as it is
//     static constexpr bool scaled;                        // whether residuals scale with the frame
//     static void enter(Frame, const double* model, double* inside), leave(Frame, inside, model);
//     bool assign(const double* model);                    // the nearest state, or one near by; false: there is none
//     void write(double* model) const;
//     void tangent(double* directions) const;              // [freedom, columns]
//     Manifold moved(const double* step) const;
//   };
#pragma once

#include "refine_geometry.h"
#include "refine_kernels.h"

namespace difflayers::cpu::refine {

// E = [t]x R, |t| = 1
struct Essential {
  static constexpr int coordinates = 4, columns = 9, freedom = 5;
  static constexpr RefineResidual residual = RefineResidual::sampson;
  static constexpr bool homogeneous = true, scaled = false;
  static constexpr int group[coordinates] = {-1, -1, -1, -1};
  double R[9], t[3];

  static void enter(const Frame&, const double* model, double* inside) { std::copy(model, model + 9, inside); }
  static void leave(const Frame&, const double* inside, double* model) { std::copy(inside, inside + 9, model); }

  // One of the two rotations: they give the same E. With E = u1 v1' + u2 v2', [u3]x = u2 u1' - u1 u2'.
  bool assign(const double* model) {
    Svd svd;
    if (!svd.of(model)) return false;
    const double *u = svd.left, *v = svd.right;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) R[3 * i + j] = u[i] * v[3 + j] - u[3 + i] * v[j] + u[6 + i] * v[6 + j];
      t[i] = u[6 + i];
    }
    return true;
  }
  // [a]x R
  void product(const double* a, double* out) const {
    for (int j = 0; j < 3; ++j) {
      const double column[3] = {R[j], R[3 + j], R[6 + j]};
      double image[3];
      cross(a, column, image);
      for (int i = 0; i < 3; ++i) out[3 * i + j] = image[i];
    }
  }
  void write(double* model) const { product(t, model); }
  void tangent(double* directions) const {
    double first[3], second[3];
    across(t, first, second);
    for (int k = 0; k < 3; ++k) {  // [t]x [e_k]x R
      for (int j = 0; j < 3; ++j) {
        double axis[3] = {0, 0, 0}, column[3] = {R[j], R[3 + j], R[6 + j]}, image[3];
        axis[k] = 1;
        cross(axis, column, image);
        cross(t, image, image);
        for (int i = 0; i < 3; ++i) directions[9 * k + 3 * i + j] = image[i];
      }
    }
    product(first, directions + 27);
    product(second, directions + 36);
  }
  Essential moved(const double* step) const {
    Essential result = *this;
    double turned[9];
    rotation(step, turned);
    multiply(turned, R, result.R);
    turn(result.t, step + 3);
    return result;
  }
};

// F = U diag(1, s, 0) V'
struct Fundamental {
  static constexpr int coordinates = 4, columns = 9, freedom = 7;
  static constexpr RefineResidual residual = RefineResidual::sampson;
  static constexpr bool homogeneous = true, scaled = true;
  static constexpr int group[coordinates] = {0, 0, 1, 1};
  double U[9], V[9], s;  // columns are the singular vectors

  // T2^-T F T1^-1
  static void enter(const Frame& frame, const double* model, double* inside) {
    std::copy(model, model + 9, inside);
    times_inverse(inside, frame, 0);
    transpose(inside);
    times_inverse(inside, frame, 1);
    transpose(inside);
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    std::copy(inside, inside + 9, model);
    times(model, frame, 0);
    transpose(model);
    times(model, frame, 1);
    transpose(model);
  }
  bool assign(const double* model) {
    Svd svd;
    if (!svd.of(model)) return false;
    std::copy(svd.left, svd.left + 9, U);
    std::copy(svd.right, svd.right + 9, V);
    transpose(U);
    transpose(V);
    s = svd.value[1] / svd.value[0];
    return true;
  }
  void write(double* model) const {
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) model[3 * i + j] = U[3 * i] * V[3 * j] + s * U[3 * i + 1] * V[3 * j + 1];
  }
  void tangent(double* directions) const {
    // dU = U [a]x: u1 moves to u2 a3 - u3 a2, u2 to u3 a1 - u1 a3
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        const double *u = U + 3 * i, *v = V + 3 * j;
        double* at = directions + 3 * i + j;
        at[0] = s * u[2] * v[1];
        at[9] = -u[2] * v[0];
        at[18] = u[1] * v[0] - s * u[0] * v[1];
        at[27] = s * u[1] * v[2];
        at[36] = -u[0] * v[2];
        at[45] = u[0] * v[1] - s * u[1] * v[0];
        at[54] = u[1] * v[1];
      }
    }
  }
  Fundamental moved(const double* step) const {
    Fundamental result = *this;
    double turned[9];
    rotation(step, turned);
    multiply(U, turned, result.U);
    rotation(step + 3, turned);
    multiply(V, turned, result.V);
    result.s += step[6];
    return result;
  }
};

// unit matrices
struct Homography {
  static constexpr int coordinates = 4, columns = 9, freedom = 8;
  static constexpr RefineResidual residual = RefineResidual::transfer;
  static constexpr bool homogeneous = true, scaled = true;
  static constexpr int group[coordinates] = {0, 0, 1, 1};
  double h[9];

  // T2 H T1^-1
  static void enter(const Frame& frame, const double* model, double* inside) {
    std::copy(model, model + 9, inside);
    times_inverse(inside, frame, 0);
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i)
        inside[3 * i + j] = frame.scale * (inside[3 * i + j] - frame.origin[1][i] * inside[6 + j]);
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    std::copy(inside, inside + 9, model);
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i)
        model[3 * i + j] = model[3 * i + j] / frame.scale + frame.origin[1][i] * model[6 + j];
    times(model, frame, 0);
  }
  bool assign(const double* model) {
    std::copy(model, model + 9, h);
    return normalise(h, 9);
  }
  void write(double* model) const { std::copy(h, h + 9, model); }
  // the columns of the Householder reflection that maps h to an axis
  void tangent(double* directions) const {
    double v[9];
    std::copy(h, h + 9, v);
    v[8] += h[8] < 0 ? -1 : 1;
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 9; ++j) directions[9 * i + j] = (i == j) - v[i] * v[j] / (1 + std::abs(h[8]));
  }
  Homography moved(const double* step) const {
    double directions[72];
    tangent(directions);
    Homography result = *this;
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 9; ++j) result.h[j] += step[k] * directions[9 * k + j];
    normalise(result.h, 9);
    return result;
  }
};

// [M | t], M a rotation times a scale, which is free where `similarity`
template <bool similarity>
struct Motion {
  static constexpr int columns = 12, freedom = similarity ? 7 : 6;
  static constexpr bool homogeneous = false;
  double M[9], t[3];

  void write(double* model) const {
    for (int i = 0; i < 3; ++i) {
      std::copy(M + 3 * i, M + 3 * i + 3, model + 4 * i);
      model[4 * i + 3] = t[i];
    }
  }
  bool assign(const double* model) {
    double given[9];
    for (int i = 0; i < 3; ++i) {
      std::copy(model + 4 * i, model + 4 * i + 3, given + 3 * i);
      t[i] = model[4 * i + 3];
    }
    Svd svd;
    if (!svd.of(given) || !(svd.value[2] > 0)) return false;
    const double scale = similarity ? (svd.value[0] + svd.value[1] + svd.value[2]) / 3 : 1;
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        M[3 * i + j] = 0;
        for (int k = 0; k < 3; ++k) M[3 * i + j] += scale * svd.left[3 * k + i] * svd.right[3 * k + j];
      }
    return true;
  }
  void tangent(double* directions) const {
    std::fill(directions, directions + freedom * columns, 0.0);
    for (int k = 0; k < 3; ++k) {
      for (int j = 0; j < 3; ++j) {
        double axis[3] = {0, 0, 0}, column[3] = {M[j], M[3 + j], M[6 + j]}, image[3];
        axis[k] = 1;
        cross(axis, column, image);
        for (int i = 0; i < 3; ++i) directions[12 * k + 4 * i + j] = image[i];
      }
      directions[12 * (3 + k) + 4 * k + 3] = 1;
    }
    if constexpr (similarity)
      for (int i = 0; i < 3; ++i) std::copy(M + 3 * i, M + 3 * i + 3, directions + 72 + 4 * i);
  }
  template <class Self>
  static Self moved_from(const Self& from, const double* step) {
    Self result = from;
    double turned[9];
    rotation(step, turned);
    multiply(turned, from.M, result.M);
    for (int i = 0; i < 3; ++i) result.t[i] += step[3 + i];
    if constexpr (similarity)
      for (double& entry : result.M) entry *= std::exp(step[6]);
    return result;
  }
};

template <bool similarity>
struct Rigid : Motion<similarity> {
  static constexpr int coordinates = 6;
  static constexpr RefineResidual residual = RefineResidual::rigid;
  static constexpr bool scaled = true;
  static constexpr int group[coordinates] = {0, 0, 0, 1, 1, 1};

  static void enter(const Frame& frame, const double* model, double* inside) {
    std::copy(model, model + 12, inside);
    for (int i = 0; i < 3; ++i)
      inside[4 * i + 3] = frame.scale * (model[4 * i + 3] + dot(model + 4 * i, frame.origin[0]) - frame.origin[1][i]);
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    std::copy(inside, inside + 12, model);
    for (int i = 0; i < 3; ++i)
      model[4 * i + 3] = inside[4 * i + 3] / frame.scale - dot(inside + 4 * i, frame.origin[0]) + frame.origin[1][i];
  }
  Rigid moved(const double* step) const { return this->moved_from(*this, step); }
};

struct Pose : Motion<false> {
  static constexpr int coordinates = 5;
  static constexpr RefineResidual residual = RefineResidual::reprojection;
  static constexpr bool scaled = false;
  static constexpr int group[coordinates] = {-1, -1, 0, 0, 0};

  static void enter(const Frame& frame, const double* model, double* inside) {
    std::copy(model, model + 12, inside);
    for (int i = 0; i < 3; ++i)
      inside[4 * i + 3] = frame.scale * (model[4 * i + 3] + dot(model + 4 * i, frame.origin[0]));
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    std::copy(inside, inside + 12, model);
    for (int i = 0; i < 3; ++i)
      model[4 * i + 3] = inside[4 * i + 3] / frame.scale - dot(inside + 4 * i, frame.origin[0]);
  }
  Pose moved(const double* step) const { return moved_from(*this, step); }
};

// (normal, offset) with a unit normal, in the plane (size 2) or in space (size 3)
template <int size>
struct Hyperplane {
  static constexpr int coordinates = size, columns = size + 1, freedom = size;
  static constexpr RefineResidual residual = size == 2 ? RefineResidual::line : RefineResidual::plane;
  static constexpr bool homogeneous = true, scaled = true;
  static constexpr int group[3] = {0, 0, 0};
  double m[size + 1];

  static void enter(const Frame& frame, const double* model, double* inside) {
    std::copy(model, model + columns, inside);
    for (int i = 0; i < size; ++i) inside[size] += frame.origin[0][i] * model[i];
    inside[size] *= frame.scale;
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    std::copy(inside, inside + columns, model);
    model[size] /= frame.scale;
    for (int i = 0; i < size; ++i) model[size] -= frame.origin[0][i] * model[i];
  }
  bool assign(const double* model) {
    std::copy(model, model + columns, m);
    const double length = small::norm(m, size);
    m[size] /= length;
    return normalise(m, size);
  }
  void write(double* model) const { std::copy(m, m + columns, model); }
  void tangent(double* directions) const {
    std::fill(directions, directions + freedom * columns, 0.0);
    directions[freedom * columns - 1] = 1;
    if constexpr (size == 2)
      directions[0] = -m[1], directions[1] = m[0];
    else
      across(m, directions, directions + columns);
  }
  Hyperplane moved(const double* step) const {
    Hyperplane result = *this;
    if constexpr (size == 2) {
      result.m[0] -= step[0] * m[1], result.m[1] += step[0] * m[0];
      normalise(result.m, 2);
    } else {
      turn(result.m, step);
    }
    result.m[size] += step[size - 1];
    return result;
  }
};

// (center, radius)
struct Circle {
  static constexpr int coordinates = 2, columns = 3, freedom = 3;
  static constexpr RefineResidual residual = RefineResidual::circle;
  static constexpr bool homogeneous = false, scaled = true;
  static constexpr int group[coordinates] = {0, 0};
  double m[3];

  static void enter(const Frame& frame, const double* model, double* inside) {
    for (int i = 0; i < 2; ++i) inside[i] = frame.scale * (model[i] - frame.origin[0][i]);
    inside[2] = frame.scale * model[2];
  }
  static void leave(const Frame& frame, const double* inside, double* model) {
    for (int i = 0; i < 2; ++i) model[i] = inside[i] / frame.scale + frame.origin[0][i];
    model[2] = inside[2] / frame.scale;
  }
  bool assign(const double* model) {
    std::copy(model, model + 3, m);
    return m[2] > 0;
  }
  void write(double* model) const { std::copy(m, m + 3, model); }
  void tangent(double* directions) const {
    for (int i = 0; i < 9; ++i) directions[i] = i % 4 == 0;
  }
  Circle moved(const double* step) const { return {{m[0] + step[0], m[1] + step[1], m[2] + step[2]}}; }
};

}  // namespace difflayers::cpu::refine
