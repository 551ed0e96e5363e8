// Sums of a refinement over the points, compiled once per instruction set (DL_ISA names it). No inline function of the
// standard library may be used here: the linker would merge the copies of the different instruction sets.
#include "refine_kernels.h"
#include "refine_residuals.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

using cpu::RefineLoss;
using cpu::RefinePoints;
using cpu::RefineResidual;
using residuals::P;

constexpr double undefined = 1e30;  // no such u can come of finite points: the residual is infinite or NaN

// The loss at u and its derivative
template <RefineLoss loss>
DL_HD P loss_at(P u, P* slope) {
  const P one(1.0), zero(0.0);
  if constexpr (loss == RefineLoss::truncated) {
    *slope = select(u < one, one, zero);
    return select(u < one, u, one);
  } else if constexpr (loss == RefineLoss::cauchy) {
    *slope = one / (one + P(4.0) * u);
    for (int i = 0; i < P::size; ++i) u.v[i] = 0.25 * __builtin_log1p(4 * u.v[i]);
    return u;
  } else {
    constexpr double c = 0.82, half = 1 / (2 * 0.273 * 0.273);
    const double scale = 1 / __builtin_log((1 + c) / c), top = __builtin_log(1 + c);
    const P density = math::exp_of_minus(P(half) * u);
    *slope = P(half * scale) * density / (density + P(c));
    P value = density + P(c);
    for (int i = 0; i < P::size; ++i) value.v[i] = scale * (top - __builtin_log(value.v[i]));
    return value;
  }
}

template <class R>
void ratios(const double* model, RefinePoints points, double inverse_square, double* ratio) {
  P m[R::columns], x[R::coordinates], r[R::rows];
  for (int j = 0; j < R::columns; ++j) m[j] = P(model[j]);
  for (int64_t i = 0; i < points.count; i += P::size) {
    for (int c = 0; c < R::coordinates; ++c) x[c] = P::load(points.coordinates + c * points.stride + i);
    R::template at<false>(x, m, r, nullptr);
    P u = r[0] * r[0];
    for (int row = 1; row < R::rows; ++row) u = u + r[row] * r[row];
    u = u * P(inverse_square);
    select(u < P(undefined), u, P(__builtin_inf())).store(ratio + i);
  }
}

template <class R, RefineLoss loss>
double normal(const double* model, RefinePoints points, double inverse_square, double* matrix, double* vector) {
  constexpr int n = R::entries;
  P m[R::columns], x[R::coordinates], r[R::rows], J[R::rows][n];
  P squares[R::rows][n * (n + 1) / 2], products[R::rows][n], total(0.0);
  for (int row = 0; row < R::rows; ++row) {
    for (P& p : squares[row]) p = P(0.0);
    for (P& p : products[row]) p = P(0.0);
  }
  for (int j = 0; j < R::columns; ++j) m[j] = P(model[j]);
  for (int64_t i = 0; i < points.count; i += P::size) {
    for (int c = 0; c < R::coordinates; ++c) x[c] = P::load(points.coordinates + c * points.stride + i);
    R::template at<true>(x, m, r, J);
    P u = r[0] * r[0];
    for (int row = 1; row < R::rows; ++row) u = u + r[row] * r[row];
    u = u * P(inverse_square);
    P present(1.0), slope;
    for (int l = static_cast<int>(points.count - i); l < P::size; ++l) present.v[l] = 0;
    const auto defined = u < P(undefined);
    const P value = loss_at<loss>(select(defined, u, P(undefined)), &slope);
    total = total + present * value;
    const P weight = select(defined, present * slope * P(inverse_square), P(0.0));
    for (int row = 0; row < R::rows; ++row) {
      // infinity times a weight of 0 would be NaN
      const P error = select(defined, r[row], P(0.0));
      int at = 0;
      for (int a = 0; a < n; ++a) J[row][a] = select(defined, J[row][a], P(0.0));
      for (int a = 0; a < n; ++a) {
        const P weighted = weight * J[row][a];
        products[row][a] = products[row][a] + weighted * error;
        for (int b = a; b < n; ++b, ++at) squares[row][at] = squares[row][at] + weighted * J[row][b];
      }
    }
  }
  for (int j = 0; j < R::columns * R::columns; ++j) matrix[j] = 0;
  for (int j = 0; j < R::columns; ++j) vector[j] = 0;
  for (int row = 0; row < R::rows; ++row) {
    int at = 0;
    for (int a = 0; a < n; ++a) {
      const int i = R::index[row][a];
      vector[i] += products[row][a].sum();
      for (int b = a; b < n; ++b, ++at) {
        const int j = R::index[row][b];
        const double sum = squares[row][at].sum();
        matrix[i * R::columns + j] += sum;
        if (a != b) matrix[j * R::columns + i] += sum;
      }
    }
  }
  return total.sum();
}

// f.of<R>() for the residual of this kind
template <class F>
auto with_residual(RefineResidual kind, F f) {
  switch (kind) {
    case RefineResidual::sampson: return f.template of<residuals::Sampson>();
    case RefineResidual::transfer: return f.template of<residuals::Transfer>();
    case RefineResidual::reprojection: return f.template of<residuals::Reprojection>();
    case RefineResidual::rigid: return f.template of<residuals::Rigid>();
    case RefineResidual::line: return f.template of<residuals::Hyperplane<2>>();
    case RefineResidual::plane: return f.template of<residuals::Hyperplane<3>>();
    default: return f.template of<residuals::Circle>();
  }
}

struct Ratios {
  template <class R>
  auto of() { return ratios<R>; }
};

struct Normal {
  RefineLoss loss;
  template <class R>
  auto of() {
    switch (loss) {
      case RefineLoss::truncated: return normal<R, RefineLoss::truncated>;
      case RefineLoss::cauchy: return normal<R, RefineLoss::cauchy>;
      default: return normal<R, RefineLoss::gaussian_uniform>;
    }
  }
};

void any_ratios(RefineResidual kind, const double* model, RefinePoints points, double inverse_square, double* ratio) {
  with_residual(kind, Ratios{})(model, points, inverse_square, ratio);
}

double any_normal(RefineResidual kind, RefineLoss loss, const double* model, RefinePoints points,
                  double inverse_square, double* matrix, double* vector) {
  return with_residual(kind, Normal{loss})(model, points, inverse_square, matrix, vector);
}

constexpr cpu::RefineKernels set_of_kernels{any_ratios, any_normal};

}  // namespace
}  // namespace DL_ISA

namespace cpu {
#define DL_CONCATENATE(a, b) a##b
#define DL_NAMED(a, b) DL_CONCATENATE(a, b)
const RefineKernels* DL_NAMED(refine_kernels_, DL_ISA)() { return &set_of_kernels; }
}  // namespace cpu
}  // namespace difflayers
