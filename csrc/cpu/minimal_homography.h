// The homography of 4 point pairs (x1, y1, x2, y2).
#pragma once

#include "minimal.h"

namespace difflayers::cpu::minimal {

struct Homography {
  static constexpr int size = 4, point = 4, parameters = 9, solutions = 1, freedom = 8;

  // rows of the direct linear transform of one pair: e_x = h1 x - u h3 x, e_y = h2 x - v h3 x
  static void rows(double x, double y, double u, double v, double* out) {
    const double values[18] = {x, y, 1, 0, 0, 0, -u * x, -u * y, -u, 0, 0, 0, x, y, 1, -v * x, -v * y, -v};
    std::copy(values, values + 18, out);
  }

  static int solve(const double* sample, double* model) {
    const auto first = Normalisation::of(sample, size, point), second = Normalisation::of(sample + 2, size, point);
    double design[72];
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      rows(first.apply(p, 0), first.apply(p, 1), second.apply(p + 2, 0), second.apply(p + 2, 1), design + 18 * i);
    }
    double h[9];
    if (!null_vector(design, h)) return 0;
    unnormalise(h, first, second, model);
    const double length = small::norm(model, 9);
    if (!(length > 0) || !std::isfinite(length)) return 0;
    for (int i = 0; i < 9; ++i) model[i] /= length;
    return 1;
  }

  // The null vector of an 8 x 9 matrix by elimination with complete pivoting, which is overwritten.
  static bool null_vector(double* a, double* h) {
    int column[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    for (int k = 0; k < 8; ++k) {
      int row = k, at = k;
      for (int i = k; i < 8; ++i)
        for (int j = k; j < 9; ++j)
          if (std::abs(a[i * 9 + j]) > std::abs(a[row * 9 + at])) row = i, at = j;
      const double pivot = a[row * 9 + at];
      if (!(std::abs(pivot) > 1e-12)) return false;  // the points are normalised: entries are of order 1
      if (row != k) std::swap_ranges(a + k * 9, a + k * 9 + 9, a + row * 9);
      if (at != k) {
        std::swap(column[k], column[at]);
        for (int i = 0; i < 8; ++i) std::swap(a[i * 9 + k], a[i * 9 + at]);
      }
      for (int i = k + 1; i < 8; ++i) {
        const double factor = a[i * 9 + k] / pivot;
        for (int j = k + 1; j < 9; ++j) a[i * 9 + j] -= factor * a[k * 9 + j];
      }
    }
    double x[9];
    x[8] = 1;
    for (int k = 7; k >= 0; --k) {
      double sum = 0;
      for (int j = k + 1; j < 9; ++j) sum += a[k * 9 + j] * x[j];
      x[k] = -sum / a[k * 9 + k];
    }
    for (int k = 0; k < 9; ++k) h[column[k]] = x[k];
    return true;
  }

  // out = T2^-1 h T1
  static void unnormalise(const double* h, const Normalisation& first, const Normalisation& second, double* out) {
    double right[9];
    for (int i = 0; i < 3; ++i) {
      right[3 * i] = h[3 * i] * first.scale;
      right[3 * i + 1] = h[3 * i + 1] * first.scale;
      right[3 * i + 2] = h[3 * i + 2] - first.scale * (h[3 * i] * first.mean[0] + h[3 * i + 1] * first.mean[1]);
    }
    for (int j = 0; j < 3; ++j) {
      out[j] = right[j] / second.scale + second.mean[0] * right[6 + j];
      out[3 + j] = right[3 + j] / second.scale + second.mean[1] * right[6 + j];
      out[6 + j] = right[6 + j];
    }
  }

  // out = T2 h T1^-1
  static void normalise(const double* h, const Normalisation& first, const Normalisation& second, double* out) {
    double right[9];
    for (int i = 0; i < 3; ++i) {
      right[3 * i] = h[3 * i] / first.scale;
      right[3 * i + 1] = h[3 * i + 1] / first.scale;
      right[3 * i + 2] = h[3 * i + 2] + h[3 * i] * first.mean[0] + h[3 * i + 1] * first.mean[1];
    }
    for (int j = 0; j < 3; ++j) {
      out[j] = second.scale * (right[j] - second.mean[0] * right[6 + j]);
      out[3 + j] = second.scale * (right[3 + j] - second.mean[1] * right[6 + j]);
      out[6 + j] = right[6 + j];
    }
  }

  static void linearise(const double* model, const double* sample, double* tangent, double* by_model,
                        double* by_sample) {
    const auto first = Normalisation::of(sample, size, point), second = Normalisation::of(sample + 2, size, point);
    double h[9], directions[72];
    normalise(model, first, second, h);
    const double length = small::norm(h, 9);
    for (double& entry : h) entry /= length;
    // orthonormal directions across h: the columns of the Householder reflection that maps h to an axis
    const double sign = h[8] < 0 ? -1 : 1;
    double v[9];
    std::copy(h, h + 9, v);
    v[8] += sign;
    const double square = 2 * (1 + std::abs(h[8]));
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 9; ++j) directions[i * 9 + j] = (i == j) - 2 * v[i] * v[j] / square;
    std::fill(by_sample, by_sample + freedom * size * point, 0.0);
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      const double x = first.apply(p, 0), y = first.apply(p, 1), u = second.apply(p + 2, 0), w = second.apply(p + 2, 1);
      double of_model[18];
      rows(x, y, u, w, of_model);
      for (int e = 0; e < 2; ++e) {
        for (int k = 0; k < 8; ++k) {
          double sum = 0;
          for (int j = 0; j < 9; ++j) sum += of_model[e * 9 + j] * directions[k * 9 + j];
          by_model[(2 * i + e) * 8 + k] = sum;
        }
        const double target = e == 0 ? u : w;
        double* row = by_sample + ((2 * i + e) * size + i) * point;
        row[0] = first.scale * (h[3 * e] - target * h[6]);
        row[1] = first.scale * (h[3 * e + 1] - target * h[7]);
        row[2 + e] = -second.scale * (h[6] * x + h[7] * y + h[8]);
      }
    }
    // back to the given coordinates, where the model has unit norm: its differential is that of h_raw / |h_raw|
    double raw[9];
    unnormalise(h, first, second, raw);
    const double raw_length = small::norm(raw, 9);
    const double orientation = raw[0] * model[0] + raw[4] * model[4] + raw[8] * model[8] < 0 ? -1 : 1;
    for (int k = 0; k < 8; ++k) {
      double* out = tangent + k * 9;
      unnormalise(directions + k * 9, first, second, out);
      double along = 0;
      for (int j = 0; j < 9; ++j) along += out[j] * model[j];
      for (int j = 0; j < 9; ++j) out[j] = orientation * (out[j] - along * model[j]) / raw_length;
    }
  }
};

}  // namespace difflayers::cpu::minimal
