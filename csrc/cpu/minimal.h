// What a minimal problem provides; minimal.cpp makes the operators minimal_solve and minimal_backward of it.
//
//   struct Problem {
//     static constexpr int size;        // points in a sample
//     static constexpr int point;       // numbers in a point
//     static constexpr int parameters;  // numbers in a model, of unit norm where the scale is free
//     static constexpr int solutions;   // the most models of a sample
//     static constexpr int freedom;     // degrees of freedom of a model = number of equations of a sample
//     // Writes the models [solutions, parameters] of a sample [size, point]; returns how many there are.
//     static int solve(const double* sample, double* models);
//     // The equations e(model, sample) = 0 linearised at a solution: tangent [freedom, parameters], directions in
//     // which a model can move; by_model [freedom, freedom], the derivative of each equation along each of them;
//     // by_sample [freedom, size * point].
//     static void linearise(const double* model, const double* sample, double* tangent, double* by_model,
//                           double* by_sample);
//   };
//
// Everything is float64. The condition number and with it the refusal of a gradient depend on the coordinates in which
// the equations are written: linearise writes them for points moved to their mean and scaled, and maps the tangent
// directions back.
#pragma once

#include <cmath>

#include "small_matrix.h"

namespace difflayers::cpu::minimal {

// x -> scale * (x - mean), so that the points' mean is 0 and their mean square coordinate is 1.
struct Normalisation {
  double mean[2], scale;

  // points at `first`, `count` of them `stride` apart
  static Normalisation of(const double* first, int count, int stride) {
    Normalisation result{{0, 0}, 1};
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < 2; ++c) result.mean[c] += first[i * stride + c] / count;
    double square = 0;
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < 2; ++c) square += std::pow(first[i * stride + c] - result.mean[c], 2) / (2 * count);
    if (square > 0) result.scale = 1 / std::sqrt(square);
    return result;
  }
  double apply(const double* point, int c) const { return scale * (point[c] - mean[c]); }
};

}  // namespace difflayers::cpu::minimal
