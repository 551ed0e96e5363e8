// The inner loops of the refinement, compiled once per instruction set (refine_kernels.cpp). Plain data and function
// pointers only: nothing here may emit code.
#pragma once

#include <cstdint>

namespace difflayers::cpu {

enum class RefineResidual : int32_t { sampson, transfer, reprojection, rigid, line, plane, circle };

// With u = (residual / threshold)^2, each has slope 1 at u = 0 up to a factor:
//   truncated         min(u, 1)
//   cauchy            log(1 + 4 u) / 4: half the threshold is the scale
//   gaussian_uniform  the negative logarithm of exp(-u / 2 s^2) + c, moved and scaled to 0 at u = 0 and to 1 at
//                     infinity; s = 0.273 and c = 0.82 make it MAGSAC++'s loss within 0.4 % of its range
enum class RefineLoss : int32_t { truncated, cauchy, gaussian_uniform };

// Coordinate c of point i is coordinates[c * stride + i]; stride is a multiple of 8, and what lies beyond `count` can be
// read and is finite.
struct RefinePoints {
  const double* coordinates;
  int64_t stride, count;
};

constexpr int refine_coordinates = 6, refine_columns = 12;  // the most that a kind has

struct RefineKernels {
  // u of every point; infinite where it is not defined.
  void (*ratios)(RefineResidual, const double* model, RefinePoints, double inverse_square, double* ratio);
  // matrix [columns, columns] = sum w J^T J and vector [columns] = sum w J^T r, with J the residuals' derivative by the
  // numbers of the model and w the loss's by u, over threshold^2. Returns the sum of the losses.
  double (*normal)(RefineResidual, RefineLoss, const double* model, RefinePoints, double inverse_square,
                   double* matrix, double* vector);
};

const RefineKernels* refine_kernels_baseline();
const RefineKernels* refine_kernels_avx2();
const RefineKernels* refine_kernels_avx512();

}  // namespace difflayers::cpu
