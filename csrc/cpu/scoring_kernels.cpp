// Residual and score of models on points in one pass, compiled once per instruction set (DL_ISA names it).
//
// A pack holds consecutive points; a model's coefficients are broadcast. Nothing of the size models x points exists.
// No inline function of the standard library may be used here: the linker would merge the copies of the different
// instruction sets.
#include "scoring_kernels.h"

#include "pack.h"  // before those whose templates call what it declares

#include "../residuals.h"
#include "../scores.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

constexpr int64_t tile = 32;           // models that go through a block of points together
constexpr int64_t block = 1024;        // points, so that they stay in the first cache
constexpr int64_t bail_block = 256;    // where a model may stop early: how often it is asked

DL_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// 1 / scale^2, NaN where no ratio can be formed: no point is active then.
template <class S>
DL_HD S inverse_square(double scale) {
  const S inverse = static_cast<S>(1 / (scale * scale));
  return scale > 0 && inverse < static_cast<S>(__builtin_inf()) ? inverse : static_cast<S>(__builtin_nan(""));
}

template <class S, template <class> class Residual>
DL_HD void coefficients_of(const S* model, double* wide, S* out) {
  using R = Residual<S>;
  double parameters[R::parameters];
  for (int k = 0; k < R::parameters; ++k) parameters[k] = model[k];
  R::expand(parameters, wide);
  for (int k = 0; k < R::coefficients; ++k) out[k] = static_cast<S>(wide[k]);
}

template <class S, template <class> class Residual, class Score>
DL_HD double sum_over(const S* coefficients, const S* points, int64_t stride, int64_t count, S inverse, Score score) {
  using P = Pack<S>;
  using R = Residual<P>;
  P m[R::coefficients];
  for (int k = 0; k < R::coefficients; ++k) m[k] = P(coefficients[k]);
  const P factor(inverse), cutoff(Score::cutoff), zero(0);
  P sum(0);
  for (int64_t i = 0; i < count; i += P::size) {
    P x[R::coordinates];
    for (int c = 0; c < R::coordinates; ++c) x[c] = P::load(points + c * stride + i);
    R residual;
    const P ratio = residual.squared(m, x) * factor;
    const auto active = ratio < cutoff;
    if constexpr (!Score::cheap) {
      if (!any(active)) continue;
    }
    sum = sum + select(active, score.value(ratio), zero);
  }
  return sum.sum();
}

template <class S, template <class> class Residual, class Score>
void forward(const cpu::ScoringJob& job, int64_t begin, int64_t end) {
  using R = Residual<S>;
  const Score score(job.parameter);
  const int64_t step = job.at_least != nullptr ? bail_block : block;
  S coefficients[tile][R::coefficients];
  double total[tile];
  for (int64_t first = begin; first < end;) {
    const int64_t problem = first / job.hypotheses;
    const int64_t models = least(tile, least(end, (problem + 1) * job.hypotheses) - first);
    const int64_t count = job.counts[problem];
    const S* points = static_cast<const S*>(job.coordinates) + problem * R::coordinates * job.stride;
    const S inverse = inverse_square<S>(job.scale[problem]);
    const double wanted = job.at_least != nullptr ? job.at_least[problem] : -__builtin_inf();
    const auto present = [&](int64_t h) { return job.valid == nullptr || job.valid[first + h]; };
    for (int64_t h = 0; h < models; ++h) {
      double wide[R::coefficients];
      coefficients_of<S, Residual>(static_cast<const S*>(job.models) + (first + h) * R::parameters, wide,
                                   coefficients[h]);
      total[h] = 0;
    }
    for (int64_t at = 0; at < count; at += step) {
      const int64_t here = least(step, count - at);
      for (int64_t h = 0; h < models; ++h) {
        // what has no chance of reaching the bound stops: every point that is left adds 1 at most
        if (!present(h) || total[h] + static_cast<double>(count - at) < wanted) continue;
        total[h] += sum_over<S, Residual>(coefficients[h], points + at, job.stride, here, inverse, score);
      }
    }
    for (int64_t h = 0; h < models; ++h)
      static_cast<S*>(job.result)[first + h] = static_cast<S>(present(h) ? total[h] : -__builtin_inf());
    first += models;
  }
}

template <class S, template <class> class Residual, class Score>
void backward(const cpu::ScoringJob& job, int64_t begin, int64_t end, void* scratch) {
  using P = Pack<S>;
  using R = Residual<P>;
  const Score score(job.parameter);
  const int64_t problem = begin / job.hypotheses, count = job.counts[problem];
  const S* points = static_cast<const S*>(job.coordinates) + problem * R::coordinates * job.stride;
  const S inverse = inverse_square<S>(job.scale[problem]);
  const P factor(inverse), cutoff(Score::cutoff), zero(0);
  S* of_points = static_cast<S*>(scratch);
  for (int64_t h = begin; h < end; ++h) {
    const S g = static_cast<const S*>(job.gradient)[h];
    const bool skip = g == 0 || (job.valid != nullptr && !job.valid[h]);
    S* of_model = static_cast<S*>(job.of_models) + h * R::parameters;
    double wide[R::coefficients], total[R::coefficients] = {}, of_scale = 0;
    S narrow[R::coefficients];
    coefficients_of<S, Residual>(static_cast<const S*>(job.models) + h * R::parameters, wide, narrow);
    P m[R::coefficients];
    for (int k = 0; k < R::coefficients; ++k) m[k] = P(narrow[k]);
    const P weight(g * inverse);
    for (int64_t at = 0; at < count && !skip; at += block) {
      const int64_t stop = least(at + block, count);
      P sums[R::coefficients], of_ratio(0);
      for (int k = 0; k < R::coefficients; ++k) sums[k] = zero;
      for (int64_t i = at; i < stop; i += P::size) {
        P x[R::coordinates], of_m[R::coefficients], of_x[R::coordinates];
        for (int c = 0; c < R::coordinates; ++c) x[c] = P::load(points + c * job.stride + i);
        R residual;
        const P ratio = residual.squared(m, x) * factor;
        const auto active = ratio < cutoff;
        if (!any(active)) continue;
        const P slope = score.slope(ratio);
        of_ratio = of_ratio + select(active, slope * ratio, zero);
        residual.backward(slope * weight, m, x, of_m, of_x);
        for (int k = 0; k < R::coefficients; ++k) sums[k] = sums[k] + select(active, of_m[k], zero);
        for (int c = 0; c < R::coordinates; ++c) {
          S* to = of_points + c * job.stride + i;
          (P::load(to) + select(active, of_x[c], zero)).store(to);
        }
      }
      for (int k = 0; k < R::coefficients; ++k) total[k] += sums[k].sum();
      of_scale += of_ratio.sum();
    }
    double of_parameters[R::parameters] = {};
    bool zero_throughout = true;  // then the model may be anything, NaN included
    for (int k = 0; k < R::coefficients; ++k) zero_throughout &= total[k] == 0;
    if (!zero_throughout) R::contract(wide, total, of_parameters);
    for (int k = 0; k < R::parameters; ++k) of_model[k] = static_cast<S>(of_parameters[k]);
    job.of_scale[h] = skip || of_scale == 0 ? 0 : -2 * g * of_scale / job.scale[problem];
  }
}

#define DL_FOR_SCORES(f, S, R) \
  {f<S, residuals::R, scorers::Count>, f<S, residuals::R, scorers::Msac>, \
   f<S, residuals::R, scorers::GaussianUniform>, f<S, residuals::R, scorers::Magsac>}
#define DL_FOR_SLOPES(f, S, R) \
  {nullptr, f<S, residuals::R, scorers::Msac>, f<S, residuals::R, scorers::GaussianUniform>, \
   f<S, residuals::R, scorers::Magsac>}
#define DL_FOR_RESIDUALS(row, f, S)                                                                      \
  {row(f, S, Sampson), row(f, S, SymmetricEpipolar), row(f, S, Transfer), row(f, S, SymmetricTransfer),  \
   row(f, S, Line), row(f, S, Plane), row(f, S, Circle), row(f, S, Rigid), row(f, S, Reprojection)}

constexpr cpu::ScoringKernels set_of_kernels{
    {DL_FOR_RESIDUALS(DL_FOR_SCORES, forward, float), DL_FOR_RESIDUALS(DL_FOR_SCORES, forward, double)},
    {DL_FOR_RESIDUALS(DL_FOR_SLOPES, backward, float), DL_FOR_RESIDUALS(DL_FOR_SLOPES, backward, double)}};

}  // namespace
}  // namespace DL_ISA

namespace cpu {
#define DL_CONCATENATE(a, b) a##b
#define DL_NAMED(a, b) DL_CONCATENATE(a, b)
const ScoringKernels* DL_NAMED(scoring_kernels_, DL_ISA)() { return &set_of_kernels; }
}  // namespace cpu
}  // namespace difflayers
