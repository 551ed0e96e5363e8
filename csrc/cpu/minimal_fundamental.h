// The fundamental matrices of 7 point pairs (x1, y1, x2, y2).
#pragma once

#include "epipolar.h"
#include "minimal.h"
#include "null_space.h"
#include "real_roots.h"

namespace difflayers::cpu::minimal {

struct Fundamental {
  static constexpr int size = 7, point = 4, parameters = 9, solutions = 3, freedom = 7;

  // The matrices a F1 + b F2 across the 7 equations with determinant 0: a cubic in a / b.
  static int solve(const double* sample, double* models) {
    const auto first = Normalisation::of(sample, size, point), second = Normalisation::of(sample + 2, size, point);
    double design[63], basis[18];
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      epipolar::row(first.apply(p, 0), first.apply(p, 1), second.apply(p + 2, 0), second.apply(p + 2, 1),
                    design + 9 * i);
    }
    if (!small::null_space<7, 9>(design, basis)) return 0;
    double cofactor[2][9], cubic[4] = {0, 0, 0, 0};
    for (int k = 0; k < 2; ++k) epipolar::cofactors(basis + 9 * k, cofactor[k]);
    for (int i = 0; i < 9; ++i) {
      cubic[3] += cofactor[0][i] * basis[i] / 3;
      cubic[2] += cofactor[0][i] * basis[9 + i];
      cubic[1] += cofactor[1][i] * basis[i];
      cubic[0] += cofactor[1][i] * basis[9 + i] / 3;
    }
    double pairs[3][2];
    const int found = roots::real<3>(cubic, pairs);
    int count = 0;
    for (int k = 0; k < found; ++k) {
      double f[9], of[9];
      for (int i = 0; i < 9; ++i) f[i] = pairs[k][0] * basis[i] + pairs[k][1] * basis[9 + i];
      if (!epipolar::to_unit_norm(f)) continue;
      epipolar::cofactors(f, of);
      if (!(small::norm(of, 9) > 1e-10)) continue;  // rank 1: six points of an image are on a line
      double* out = models + 9 * count;
      unnormalise(f, first, second, out);
      count += epipolar::to_unit_norm(out);
    }
    return count;
  }

  // out = T2^T f T1
  static void unnormalise(const double* f, const Normalisation& first, const Normalisation& second, double* out) {
    double right[9];
    for (int i = 0; i < 3; ++i) {
      right[3 * i] = f[3 * i] * first.scale;
      right[3 * i + 1] = f[3 * i + 1] * first.scale;
      right[3 * i + 2] = f[3 * i + 2] - first.scale * (f[3 * i] * first.mean[0] + f[3 * i + 1] * first.mean[1]);
    }
    for (int j = 0; j < 3; ++j) {
      out[j] = second.scale * right[j];
      out[3 + j] = second.scale * right[3 + j];
      out[6 + j] = right[6 + j] - second.scale * (right[j] * second.mean[0] + right[3 + j] * second.mean[1]);
    }
  }

  // out = T2^-T f T1^-1
  static void normalise(const double* f, const Normalisation& first, const Normalisation& second, double* out) {
    double right[9];
    for (int i = 0; i < 3; ++i) {
      right[3 * i] = f[3 * i] / first.scale;
      right[3 * i + 1] = f[3 * i + 1] / first.scale;
      right[3 * i + 2] = f[3 * i + 2] + f[3 * i] * first.mean[0] + f[3 * i + 1] * first.mean[1];
    }
    for (int j = 0; j < 3; ++j) {
      out[j] = right[j] / second.scale;
      out[3 + j] = right[3 + j] / second.scale;
      out[6 + j] = right[6 + j] + right[j] * second.mean[0] + right[3 + j] * second.mean[1];
    }
  }

  static void linearise(const double* model, const double* sample, double* tangent, double* by_model,
                        double* by_sample) {
    const auto first = Normalisation::of(sample, size, point), second = Normalisation::of(sample + 2, size, point);
    double f[9], across[18], directions[63];
    normalise(model, first, second, f);
    epipolar::to_unit_norm(f);
    // matrices of rank 2 and unit norm move across f and across the derivative of the determinant
    std::copy(f, f + 9, across);
    epipolar::cofactors(f, across + 9);
    epipolar::to_unit_norm(across + 9);
    std::fill(by_sample, by_sample + freedom * size * point, 0.0);
    if (!small::null_space<2, 9>(across, directions)) {
      std::fill(by_model, by_model + freedom * freedom, 0.0);
      std::fill(tangent, tangent + freedom * 9, 0.0);
      return;
    }
    for (int i = 0; i < size; ++i) {
      const double* p = sample + i * point;
      const double x = first.apply(p, 0), y = first.apply(p, 1), u = second.apply(p + 2, 0), v = second.apply(p + 2, 1);
      double of_model[9], line[3];
      epipolar::row(x, y, u, v, of_model);
      for (int k = 0; k < freedom; ++k) {
        double sum = 0;
        for (int j = 0; j < 9; ++j) sum += of_model[j] * directions[k * 9 + j];
        by_model[i * freedom + k] = sum;
      }
      double* out = by_sample + (i * size + i) * point;
      epipolar::times_transposed(f, u, v, line);
      out[0] = first.scale * line[0];
      out[1] = first.scale * line[1];
      epipolar::times(f, x, y, line);
      out[2] = second.scale * line[0];
      out[3] = second.scale * line[1];
    }
    // back to the given coordinates, where the model has unit norm: its differential is that of raw / |raw|
    double raw[9], orientation = 0;
    unnormalise(f, first, second, raw);
    const double raw_length = small::norm(raw, 9);
    for (int j = 0; j < 9; ++j) orientation += raw[j] * model[j];
    for (int k = 0; k < freedom; ++k) {
      double* out = tangent + k * 9;
      unnormalise(directions + k * 9, first, second, out);
      double along = 0;
      for (int j = 0; j < 9; ++j) along += out[j] * model[j];
      for (int j = 0; j < 9; ++j) out[j] = (orientation < 0 ? -1 : 1) * (out[j] - along * model[j]) / raw_length;
    }
  }
};

}  // namespace difflayers::cpu::minimal
