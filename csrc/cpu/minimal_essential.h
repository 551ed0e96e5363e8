// The essential matrices of 5 point pairs (x1, y1, x2, y2) in normalised coordinates.
//
// Nister, "An efficient solution to the five-point relative pose problem", TPAMI 2004: the matrices
// x E1 + y E2 + z E3 + E4 across the 5 equations that satisfy 2 E E^T E = trace(E E^T) E and det E = 0, ten cubics in
// (x, y, z), which elimination turns into one polynomial of degree 10 in z.
#pragma once

#include "epipolar.h"
#include "minimal.h"
#include "null_space.h"
#include "real_roots.h"

namespace difflayers::cpu::minimal {

struct Essential {
  static constexpr int size = 5, point = 4, parameters = 9, solutions = 10, freedom = 5;

  // Indices of the monomials of x, y, z, 1. Quadratic: x2 xy xz x y2 yz y z2 z 1. Cubic, as elimination wants them:
  // x3 y3 x2y xy2 x2z x2 y2z y2 xyz xy | xz2 xz x | yz2 yz y | z3 z2 z 1.
  static constexpr int quadratic[4][4] = {{0, 1, 2, 3}, {1, 4, 5, 6}, {2, 5, 7, 8}, {3, 6, 8, 9}};
  static constexpr int cubic[4][10] = {{0, 2, 4, 5, 3, 8, 9, 10, 11, 12},
                                       {2, 3, 8, 9, 1, 6, 7, 13, 14, 15},
                                       {4, 8, 10, 11, 6, 13, 14, 16, 17, 18},
                                       {5, 9, 11, 12, 7, 14, 15, 17, 18, 19}};

  // out += sign * a b of linear forms
  static void add_product(const double* a, const double* b, double sign, double* out) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) out[quadratic[i][j]] += sign * a[i] * b[j];
  }

  // out = sum over k of a_k b_k, quadratic forms times linear ones
  static void sum_of_products(const double* const a[3], const double* const b[3], double* out) {
    std::fill(out, out + 20, 0.0);
    for (int i = 0; i < 4; ++i) {
      double sum[10];
      for (int q = 0; q < 10; ++q) sum[q] = a[0][q] * b[0][i] + a[1][q] * b[1][i] + a[2][q] * b[2][i];
      for (int q = 0; q < 10; ++q) out[cubic[i][q]] += sum[q];
    }
  }

  // The ten cubics [10, 20] of the matrices spanned by basis [4, 9].
  static void constraints(const double* basis, double* out) {
    double e[9][4], gram[3][3][10] = {}, minors[3][10] = {}, trace[10];
    for (int i = 0; i < 9; ++i)
      for (int k = 0; k < 4; ++k) e[i][k] = basis[9 * k + i];
    for (int i = 0; i < 3; ++i)
      for (int j = i; j < 3; ++j) {
        for (int k = 0; k < 3; ++k) add_product(e[3 * i + k], e[3 * j + k], 1, gram[i][j]);
        if (i != j) std::copy(gram[i][j], gram[i][j] + 10, gram[j][i]);
      }
    for (int q = 0; q < 10; ++q) trace[q] = 0.5 * (gram[0][0][q] + gram[1][1][q] + gram[2][2][q]);
    for (int i = 0; i < 3; ++i)
      for (int q = 0; q < 10; ++q) gram[i][i][q] -= trace[q];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const double* const a[3] = {gram[i][0], gram[i][1], gram[i][2]};
        const double* const b[3] = {e[j], e[3 + j], e[6 + j]};
        sum_of_products(a, b, out + 20 * (3 * i + j));
      }
    for (int i = 0; i < 3; ++i) {
      const int j = (i + 1) % 3, k = (i + 2) % 3;
      add_product(e[3 + j], e[6 + k], 1, minors[i]);
      add_product(e[3 + k], e[6 + j], -1, minors[i]);
    }
    const double* const a[3] = {minors[0], minors[1], minors[2]};
    const double* const b[3] = {e[0], e[1], e[2]};
    sum_of_products(a, b, out + 180);
  }

  // Makes the first ten columns of rows 4 to 9 those of the identity; false when that is (nearly) impossible.
  static bool eliminate(double* a) {
    double largest = 0;
    for (int k = 0; k < 10; ++k) {
      int pivot = k;
      for (int i = k + 1; i < 10; ++i)
        if (std::abs(a[i * 20 + k]) > std::abs(a[pivot * 20 + k])) pivot = i;
      const double value = a[pivot * 20 + k];
      largest = std::max(largest, std::abs(value));
      if (!(std::abs(value) > 1e-10 * largest) || !std::isfinite(value)) return false;
      if (pivot != k) std::swap_ranges(a + k * 20 + k, a + (k + 1) * 20, a + pivot * 20 + k);
      for (int j = k; j < 20; ++j) a[k * 20 + j] /= value;
      for (int i = k + 1; i < 10; ++i) {
        const double factor = a[i * 20 + k];
        for (int j = k; j < 20; ++j) a[i * 20 + j] -= factor * a[k * 20 + j];
      }
    }
    for (int k = 9; k > 4; --k)
      for (int i = 4; i < k; ++i) {
        const double factor = a[i * 20 + k];
        for (int j = 10; j < 20; ++j) a[i * 20 + j] -= factor * a[k * 20 + j];
      }
    return true;
  }

  // A 3 x 3 matrix of polynomials in z that maps (x, y, 1) to 0: entries of degree 3, 3 and 4, lowest power first.
  struct Pencil {
    double xy[3][2][4], one[3][5], polynomial[11];

    explicit Pencil(const double* a) {
      for (int r = 0; r < 3; ++r) {
        const double *p = a + (4 + 2 * r) * 20 + 10, *q = p + 20;  // p: with z times the monomial of q
        for (int c = 0; c < 2; ++c, p += 3, q += 3) {
          double* out = xy[r][c];
          out[0] = p[2], out[1] = p[1] - q[2], out[2] = p[0] - q[1], out[3] = -q[0];
        }
        one[r][0] = p[3], one[r][1] = p[2] - q[3], one[r][2] = p[1] - q[2], one[r][3] = p[0] - q[1], one[r][4] = -q[0];
      }
      std::fill(polynomial, polynomial + 11, 0.0);
      for (int r = 0; r < 3; ++r) {
        const auto &s = xy[(r + 1) % 3], &t = xy[(r + 2) % 3];
        double minor[7] = {};
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) minor[i + j] += s[0][i] * t[1][j] - s[1][i] * t[0][j];
        for (int i = 0; i < 7; ++i)
          for (int j = 0; j < 5; ++j) polynomial[i + j] += minor[i] * one[r][j];
      }
    }

    // The coefficients of E1 .. E4 at the root z / w.
    void coefficients(double z, double w, double* out) const {
      double m[3][3], best = -1;
      for (int r = 0; r < 3; ++r) {
        for (int c = 0; c < 2; ++c) {
          const double* p = xy[r][c];
          m[r][c] = w * w * (p[0] * w + p[1] * z) + z * z * (p[2] * w + p[3] * z);
        }
        const double* p = one[r];
        m[r][2] = w * w * w * (p[0] * w + p[1] * z) + z * z * (p[2] * w * w + p[3] * z * w + p[4] * z * z);
      }
      for (int r = 0; r < 3; ++r) {
        double vector[3];
        epipolar::cross(m[(r + 1) % 3], m[(r + 2) % 3], vector);
        const double square = epipolar::dot(vector, vector);
        if (square > best) {
          best = square;
          out[0] = vector[0], out[1] = vector[1], out[2] = vector[2] * z, out[3] = vector[2] * w;
        }
      }
    }
  };

  // Orthonormal u1, u2, u3 and v1, v2, v3 with e = s (u1 v1^T + u2 v2^T) for an essential matrix; near one they leave
  // three entries of U^T e V to vanish: e11 - e22, e12 + e21 and e33.
  static bool frame(const double* e, double u[3][3], double v[3][3]) {
    double cofactor[9];
    epipolar::cofactors(e, cofactor);
    if (!epipolar::null_vectors(cofactor, u[2], v[2])) return false;
    int axis = 0;
    for (int i = 1; i < 3; ++i)
      if (std::abs(u[2][i]) < std::abs(u[2][axis])) axis = i;
    const double unit[3] = {axis == 0 ? 1.0 : 0.0, axis == 1 ? 1.0 : 0.0, axis == 2 ? 1.0 : 0.0};
    epipolar::cross(u[2], unit, u[0]);
    double length = std::sqrt(epipolar::dot(u[0], u[0]));
    for (double& entry : u[0]) entry /= length;
    epipolar::cross(u[2], u[0], u[1]);
    for (int j = 0; j < 3; ++j) v[0][j] = u[0][0] * e[j] + u[0][1] * e[3 + j] + u[0][2] * e[6 + j];
    const double along = epipolar::dot(v[0], v[2]);
    for (int j = 0; j < 3; ++j) v[0][j] -= along * v[2][j];
    length = std::sqrt(epipolar::dot(v[0], v[0]));
    if (!(length > 0)) return false;
    for (double& entry : v[0]) entry /= length;
    epipolar::cross(v[2], v[0], v[1]);
    double size = 0;
    for (int i = 0; i < 3; ++i) size += u[1][i] * epipolar::dot(e + 3 * i, v[1]);
    if (size < 0)
      for (double& entry : v[1]) entry = -entry;
    return true;
  }

  // Newton's method for the coefficients c of the basis [4, 9] within the unit sphere; e is their matrix.
  static bool polish(const double* basis, double* c, double* e) {
    double error = 1;
    for (int step = 0; step < 8; ++step) {
      const double length = small::norm(c, 4);
      if (!(length > 0) || !std::isfinite(length)) return false;
      for (int k = 0; k < 4; ++k) c[k] /= length;
      for (int i = 0; i < 9; ++i)
        e[i] = c[0] * basis[i] + c[1] * basis[9 + i] + c[2] * basis[18 + i] + c[3] * basis[27 + i];
      double u[3][3], v[3][3], a[16], b[4];
      if (!frame(e, u, v)) return false;
      for (int k = 0; k < 5; ++k) {  // the last one is e itself
        const double* m = k < 4 ? basis + 9 * k : e;
        double right[3][3], entry[3][3];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) right[i][j] = epipolar::dot(m + 3 * i, v[j]);
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            entry[i][j] = u[i][0] * right[0][j] + u[i][1] * right[1][j] + u[i][2] * right[2][j];
        const double values[3] = {entry[0][0] - entry[1][1], entry[0][1] + entry[1][0], entry[2][2]};
        for (int r = 0; r < 3; ++r) (k < 4 ? a[4 * r + k] : b[r]) = k < 4 ? values[r] : -values[r];
        if (k < 4) a[12 + k] = c[k];
      }
      b[3] = 0;
      const double before = error;
      error = small::norm(b, 3);
      if (error < 1e-15 || (error < 1e-12 && error > 0.5 * before)) return true;  // as exact as it gets
      if (!small::solve<4, 1>(a, b)) return error < 1e-9;
      for (int k = 0; k < 4; ++k) c[k] += b[k];
    }
    return error < 1e-9;
  }

  static int solve(const double* sample, double* models) {
    double design[45], basis[36];
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      epipolar::row(p[0], p[1], p[2], p[3], design + 9 * i);
      if (!epipolar::to_unit_norm(design + 9 * i)) return 0;
    }
    if (!small::null_space<5, 9>(design, basis)) return 0;
    bool lost = false;
    int count = within(basis, models, lost);
    if (lost) {  // a root is near infinity or the elimination near singular, in this basis: in another one it is not
      double turned[36], again[90];
      for (int i = 0; i < 9; ++i) {
        const double *b = basis + i, p = b[0] + b[9], q = b[0] - b[9], r = b[18] + b[27], t = b[18] - b[27];
        turned[i] = 0.5 * (p + r), turned[9 + i] = 0.5 * (q + t);
        turned[18 + i] = 0.5 * (p - r), turned[27 + i] = 0.5 * (q - t);
      }
      const int other = within(turned, again, lost);
      if (other > count) std::copy(again, again + 9 * other, models), count = other;
    }
    return count;
  }

  // The essential matrices of unit norm spanned by basis [4, 9], which is orthonormal; `lost`: roots may be missing.
  static int within(const double* basis, double* models, bool& lost) {
    double cubics[200], pairs[10][2];
    constraints(basis, cubics);
    lost = !eliminate(cubics);
    if (lost) return 0;
    const Pencil pencil(cubics);
    const int found = roots::real<10>(pencil.polynomial, pairs);
    int count = 0;
    for (int k = 0; k < found; ++k) {
      double c[4], *e = models + 9 * count;
      pencil.coefficients(pairs[k][0], pairs[k][1], c);
      if (!polish(basis, c, e) || !epipolar::to_unit_norm(e)) continue;
      bool fresh = true;  // two roots so close that they were polished to the same matrix are one
      for (int other = 0; other < count; ++other) {
        double along = 0, square = 0;
        for (int i = 0; i < 9; ++i) along += e[i] * models[9 * other + i];
        for (int i = 0; i < 9; ++i) square += std::pow(e[i] - (along < 0 ? -1 : 1) * models[9 * other + i], 2);
        fresh &= square > 1e-16;
      }
      count += fresh;
    }
    lost = count < found || count % 2 == 1;  // the polynomial is of even degree
    return count;
  }

  static void linearise(const double* model, const double* sample, double* tangent, double* by_model,
                        double* by_sample) {
    double u[3][3], v[3][3];
    std::fill(by_sample, by_sample + freedom * size * point, 0.0);
    if (!frame(model, u, v)) {
      std::fill(by_model, by_model + freedom * freedom, 0.0);
      std::fill(tangent, tangent + freedom * 9, 0.0);
      return;
    }
    // U M V^T is tangent for M = e1 e3^T, e2 e3^T, e3 e1^T, e3 e2^T and (e1 e2^T - e2 e1^T) / sqrt 2
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        double* out = tangent + 3 * i + j;
        out[0] = u[0][i] * v[2][j];
        out[9] = u[1][i] * v[2][j];
        out[18] = u[2][i] * v[0][j];
        out[27] = u[2][i] * v[1][j];
        out[36] = (u[0][i] * v[1][j] - u[1][i] * v[0][j]) * 0.70710678118654752;
      }
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      double of_model[9], line[3];
      epipolar::row(p[0], p[1], p[2], p[3], of_model);
      for (int k = 0; k < freedom; ++k) {
        double sum = 0;
        for (int j = 0; j < 9; ++j) sum += of_model[j] * tangent[k * 9 + j];
        by_model[i * freedom + k] = sum;
      }
      double* out = by_sample + (i * size + i) * point;
      epipolar::times_transposed(model, p[2], p[3], line);
      out[0] = line[0], out[1] = line[1];
      epipolar::times(model, p[0], p[1], line);
      out[2] = line[0], out[3] = line[1];
    }
  }
};

}  // namespace difflayers::cpu::minimal
