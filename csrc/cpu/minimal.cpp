// Minimal solvers and their gradients by the implicit function theorem on the CPU: a sample at a time, over threads.
#include "minimal.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <string>
#include <tuple>

#include "../text.h"
#include "minimal_essential.h"
#include "minimal_fundamental.h"
#include "minimal_homography.h"
#include "minimal_pose.h"

namespace difflayers::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// f(Problem{}) for the problem of this name
template <class F>
auto with_problem(const std::string& name, F f) {
  if (name == "essential") return f(minimal::Essential{});
  if (name == "fundamental") return f(minimal::Fundamental{});
  if (name == "homography") return f(minimal::Homography{});
  if (name == "pose") return f(minimal::Pose{});
  STD_TORCH_CHECK(false, "difflayers: no minimal problem is called ", name);
}

template <class P>
void expect_samples(const Tensor& samples) {
  STD_TORCH_CHECK(samples.scalar_type() == ScalarType::Double && samples.dim() == 3 && samples.size(1) == P::size &&
                      samples.size(2) == P::point,
                  "difflayers: samples must be float64 [B, ", P::size, ", ", P::point, "]");
}

// The derivative's matrices at one model, with the rows of by_model scaled to unit length (those of by_sample alike).
template <class P>
struct Linearisation {
  double tangent[P::freedom * P::parameters];
  double inverse[P::freedom * P::freedom];
  double by_sample[P::freedom * P::size * P::point];
  double condition;  // of by_model in the Frobenius norm, infinite when singular

  Linearisation(const double* model, const double* sample) {
    constexpr int n = P::freedom, m = P::size * P::point;
    double by_model[n * n];
    P::linearise(model, sample, tangent, by_model, by_sample);
    for (int i = 0; i < n; ++i) {
      const double length = small::norm(by_model + i * n, n);
      const double factor = length > 0 ? 1 / length : 0;
      for (int j = 0; j < n; ++j) by_model[i * n + j] *= factor;
      for (int j = 0; j < m; ++j) by_sample[i * m + j] *= factor;
    }
    const double size = small::norm(by_model, n * n);
    condition = std::numeric_limits<double>::infinity();
    if (small::invert<n>(by_model, inverse)) condition = size * small::norm(inverse, n * n);
    if (!(condition == condition)) condition = std::numeric_limits<double>::infinity();
  }
};

// Returns models [B, solutions, parameters], 0 where not valid; how many are valid [B]; condition numbers
// [B, solutions], or [0] when not asked for.
std::tuple<Tensor, Tensor, Tensor> minimal_solve(Tensor samples, Text problem, bool with_condition) {
  return with_problem(problem, [&](auto p) -> std::tuple<Tensor, Tensor, Tensor> {
    using P = decltype(p);
    expect_samples<P>(samples);
    samples = torch::stable::contiguous(samples);
    const int64_t rows = samples.size(0);
    Tensor models = torch::stable::new_empty(samples, {rows, P::solutions, P::parameters});
    Tensor counts = torch::stable::new_empty(samples, {rows}, ScalarType::Long);
    Tensor conditions = with_condition ? torch::stable::new_empty(samples, {rows, P::solutions})
                                       : torch::stable::new_empty(samples, {0});
    const auto* from = static_cast<const double*>(samples.data_ptr());
    auto* to = static_cast<double*>(models.data_ptr());
    auto* count = static_cast<int64_t*>(counts.data_ptr());
    auto* condition = static_cast<double*>(conditions.data_ptr());
    // a sample takes 1 to 10 us; 200 us are worth a thread
    torch::stable::parallel_for(0, rows, 32, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const double* sample = from + row * P::size * P::point;
        double* found = to + row * P::solutions * P::parameters;
        count[row] = P::solve(sample, found);
        std::fill(found + count[row] * P::parameters, found + P::solutions * P::parameters, 0.0);
        for (int s = 0; with_condition && s < P::solutions; ++s) {
          condition[row * P::solutions + s] = s < count[row]
              ? Linearisation<P>(found + s * P::parameters, sample).condition
              : std::numeric_limits<double>::infinity();
        }
      }
    });
    return {models, counts, conditions};
  });
}

// The gradient by samples [B, size, point] of sum(gradient * models); models whose condition number is not below
// `worst` contribute nothing.
Tensor minimal_backward(Tensor gradient, Tensor models, Tensor counts, Tensor samples, Text problem,
                        double worst) {
  return with_problem(problem, [&](auto p) -> Tensor {
    using P = decltype(p);
    constexpr int n = P::freedom, m = P::size * P::point, q = P::parameters;
    expect_samples<P>(samples);
    const int64_t rows = samples.size(0);
    for (const Tensor* t : {&gradient, &models})
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Double && t->numel() == rows * P::solutions * q,
                      "difflayers: gradient and models must be float64 [B, solutions, parameters]");
    STD_TORCH_CHECK(counts.scalar_type() == ScalarType::Long && counts.numel() == rows,
                    "difflayers: counts must be int64 [B]");
    gradient = torch::stable::contiguous(gradient);
    models = torch::stable::contiguous(models);
    counts = torch::stable::contiguous(counts);
    samples = torch::stable::contiguous(samples);
    Tensor result = torch::stable::empty_like(samples);
    const auto* g = static_cast<const double*>(gradient.data_ptr());
    const auto* model = static_cast<const double*>(models.data_ptr());
    const auto* count = static_cast<const int64_t*>(counts.data_ptr());
    const auto* from = static_cast<const double*>(samples.data_ptr());
    auto* to = static_cast<double*>(result.data_ptr());
    for (int64_t row = 0; row < rows; ++row)
      STD_TORCH_CHECK(0 <= count[row] && count[row] <= P::solutions, "difflayers: counts must be in [0, ",
                      P::solutions, "]");
    torch::stable::parallel_for(0, rows, 32, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        double* out = to + row * m;
        std::fill(out, out + m, 0.0);
        for (int64_t s = row * P::solutions; s < row * P::solutions + count[row]; ++s) {
          bool zero = true;
          for (int j = 0; j < q; ++j) zero &= g[s * q + j] == 0;
          if (zero) continue;
          const Linearisation<P> at(model + s * q, from + row * m);
          if (!(at.condition < worst)) continue;
          // by_model step = -by_sample dx, model moves by tangent^T step: adjoint of that
          double along[n], multiplier[n];
          for (int k = 0; k < n; ++k) {
            along[k] = 0;
            for (int j = 0; j < q; ++j) along[k] += at.tangent[k * q + j] * g[s * q + j];
          }
          for (int e = 0; e < n; ++e) {
            multiplier[e] = 0;
            for (int k = 0; k < n; ++k) multiplier[e] += at.inverse[k * n + e] * along[k];
          }
          for (int e = 0; e < n; ++e)
            for (int j = 0; j < m; ++j) out[j] -= multiplier[e] * at.by_sample[e * m + j];
        }
      }
    });
    return result;
  });
}

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  library.impl("minimal_solve", TORCH_BOX(&difflayers::cpu::minimal_solve));
  library.impl("minimal_backward", TORCH_BOX(&difflayers::cpu::minimal_backward));
}
