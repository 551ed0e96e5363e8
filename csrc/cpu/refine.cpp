// Refinement of models on the CPU: Levenberg-Marquardt on the manifold, a (problem, model) pair at a time, over threads.
//
// Only the points within a few thresholds of a model are visited while it moves; points that come within the threshold
// later are gathered in another round.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../text.h"
#include "instruction_set.h"
#include "refine_manifolds.h"

namespace difflayers::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int rounds = 3;
constexpr double gathered = 9;  // gather the points with u below this, where the loss is bounded

// f(Manifold) for the model of this name
template <class F>
auto with_manifold(const std::string& name, F f) {
  if (name == "essential") return f(refine::Essential{});
  if (name == "fundamental") return f(refine::Fundamental{});
  if (name == "homography") return f(refine::Homography{});
  if (name == "pose") return f(refine::Pose{});
  if (name == "rigid") return f(refine::Rigid<false>{});
  if (name == "similarity") return f(refine::Rigid<true>{});
  if (name == "line") return f(refine::Hyperplane<2>{});
  if (name == "plane") return f(refine::Hyperplane<3>{});
  if (name == "circle") return f(refine::Circle{});
  STD_TORCH_CHECK(false, "difflayers: no model that can be refined is called ", name);
}

RefineLoss loss_of(const std::string& name) {
  if (name == "truncated") return RefineLoss::truncated;
  if (name == "cauchy") return RefineLoss::cauchy;
  if (name == "gaussian_uniform") return RefineLoss::gaussian_uniform;
  STD_TORCH_CHECK(false, "difflayers: no loss of the refinement is called ", name);
}

// as loss_at in refine_kernels.cpp; u may be infinite
double loss_at(RefineLoss loss, double u) {
  constexpr double c = 0.82, half = 1 / (2 * 0.273 * 0.273);
  if (loss == RefineLoss::truncated) return std::min(u, 1.0);
  if (loss == RefineLoss::cauchy) return std::log1p(4 * std::min(u, 1e30)) / 4;
  return (std::log(1 + c) - std::log(std::exp(-half * u) + c)) / std::log((1 + c) / c);
}

// Points as planes of coordinates, with room for a whole vector after the last one.
struct Planes {
  std::vector<double> coordinates;
  int64_t stride = 0, count = 0;

  void reserve(int64_t points, int dimensions) {
    stride = (points + 15) / 8 * 8;
    coordinates.assign(static_cast<size_t>(stride * dimensions), 1.0);
  }
  RefinePoints view() const { return {coordinates.data(), stride, count}; }
};

template <class M>
class Refinement {
 public:
  Refinement(const Planes& points, RefineLoss loss, double threshold, int64_t steps)
      : kernels_(*instruction_set().refine), points_(points), loss_(loss), steps_(steps),
        inverse_square_(1 / (threshold * threshold)), ratio_(static_cast<size_t>(points.stride)) {
    near_.reserve(points.count, M::coordinates);
  }

  // Overwrites the model with the best one found from it, if better; returns its loss.
  double run(double* model) {
    double best = loss_of_all(model);
    const double first = best;
    double current[M::columns];
    std::copy(model, model + M::columns, current);
    for (int round = 0; round < rounds && steps_ > 0; ++round) {
      gather();
      if (near_.count * rows() < M::freedom || !descend(current)) break;
      const double now = loss_of_all(current);
      if (!(now < best)) break;
      best = now;
      std::copy(current, current + M::columns, model);
      if (!newcomers()) break;
    }
    return std::isfinite(first) ? best : first;
  }

 private:
  static constexpr int n = M::freedom, m = M::columns;

  static constexpr int rows() {
    return M::residual == RefineResidual::rigid ? 3
           : M::residual == RefineResidual::transfer || M::residual == RefineResidual::reprojection ? 2 : 1;
  }

  double loss_of_all(const double* model) {
    for (int j = 0; j < m; ++j)
      if (!std::isfinite(model[j])) return std::numeric_limits<double>::infinity();
    kernels_.ratios(M::residual, model, points_.view(), inverse_square_, ratio_.data());
    double sum = 0;
    for (int64_t i = 0; i < points_.count; ++i) sum += loss_at(loss_, ratio_[static_cast<size_t>(i)]);
    return sum;
  }

  // The points near the model that ratio_ belongs to, in a frame around them.
  void gather() {
    limit_ = loss_ == RefineLoss::cauchy ? std::numeric_limits<double>::infinity() : gathered;
    near_.count = 0;
    taken_.assign(static_cast<size_t>(points_.count), 0);
    for (int64_t i = 0; i < points_.count; ++i) {
      if (!(ratio_[static_cast<size_t>(i)] < limit_)) continue;
      taken_[static_cast<size_t>(i)] = 1;
      for (int c = 0; c < M::coordinates; ++c)
        near_.coordinates[static_cast<size_t>(c * near_.stride + near_.count)] =
            points_.coordinates[static_cast<size_t>(c * points_.stride + i)];
      ++near_.count;
    }
    frame_ = refine::Frame{};
    double sums[2][3] = {}, square = 0;
    int64_t numbers = 0;
    for (int c = 0, at[2] = {0, 0}; c < M::coordinates; ++c) {
      const int group = M::group[c];
      if (group < 0) continue;
      double* values = near_.coordinates.data() + c * near_.stride;
      double& sum = sums[group][at[group]];
      for (int64_t i = 0; i < near_.count; ++i) sum += values[i];
      const double mean = sum / static_cast<double>(std::max<int64_t>(near_.count, 1));
      frame_.origin[group][at[group]++] = mean;
      for (int64_t i = 0; i < near_.count; ++i) {
        values[i] -= mean;
        square += values[i] * values[i];
      }
      numbers += near_.count;
    }
    if (square > 0) frame_.scale = std::sqrt(static_cast<double>(numbers) / square);
    for (int c = 0; c < M::coordinates; ++c) {
      double* values = near_.coordinates.data() + c * near_.stride;
      for (int64_t i = 0; M::group[c] >= 0 && i < near_.count; ++i) values[i] *= frame_.scale;
    }
    inside_ = M::scaled ? inverse_square_ / (frame_.scale * frame_.scale) : inverse_square_;
  }

  bool newcomers() const {
    for (int64_t i = 0; i < points_.count; ++i)
      if (ratio_[static_cast<size_t>(i)] < 1 && !taken_[static_cast<size_t>(i)]) return true;
    return false;
  }

  struct Normal {
    double matrix[n * n], vector[n], loss;
  };

  void linearise(const M& state, Normal& out) const {
    double model[m], matrix[m * m], vector[m], directions[n * m], half[n * m];
    state.write(model);
    out.loss = kernels_.normal(M::residual, loss_, model, near_.view(), inside_, matrix, vector);
    state.tangent(directions);
    for (int i = 0; i < n; ++i) {
      out.vector[i] = 0;
      for (int j = 0; j < m; ++j) {
        double sum = 0;
        for (int k = 0; k < m; ++k) sum += directions[i * m + k] * matrix[k * m + j];
        half[i * m + j] = sum;
        out.vector[i] += directions[i * m + j] * vector[j];
      }
    }
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int k = 0; k < m; ++k) sum += half[i * m + k] * directions[j * m + k];
        out.matrix[i * n + j] = sum;
      }
  }

  // Levenberg-Marquardt on the gathered points, from the model and back to it.
  bool descend(double* model) const {
    double inside[m];
    M::enter(frame_, model, inside);
    M state;
    if (!state.assign(inside)) return false;
    Normal now, next;
    linearise(state, now);
    double damping = 1e-4;
    for (int64_t step = 0; step < steps_ && damping < 1e8; ++step) {
      double matrix[n * n], move[n], largest = 0, expected = 0;
      std::copy(now.matrix, now.matrix + n * n, matrix);
      for (int i = 0; i < n; ++i) largest = std::max(largest, matrix[i * n + i]);
      for (int i = 0; i < n; ++i) {
        // a direction that no point feels (F with equal singular values has one) must not make the matrix singular
        matrix[i * n + i] += damping * std::max(matrix[i * n + i], 1e-9 * largest);
        move[i] = -now.vector[i];
      }
      if (!(largest > 0) || !small::solve<n, 1>(matrix, move)) break;
      for (int i = 0; i < n; ++i) expected -= now.vector[i] * move[i];
      const M moved = state.moved(move);
      linearise(moved, next);
      if (next.loss < now.loss) {
        state = moved;
        std::swap(now, next);
        damping = std::max(damping / 10, 1e-9);
      } else {
        damping = std::max(damping * 10, 1e-6);
      }
      if (!(expected > 1e-14 * now.loss)) break;
    }
    state.write(inside);
    double found[m];
    M::leave(frame_, inside, found);
    if (M::homogeneous) {  // the norm and the sign of the model that came
      constexpr int counted = m < 9 ? m - 1 : m;  // a line's and a plane's norm is that of their normal
      double along = 0;
      for (int j = 0; j < counted; ++j) along += found[j] * model[j];
      const double factor = small::norm(model, counted) / small::norm(found, counted) * (along < 0 ? -1 : 1);
      for (double& entry : found) entry *= factor;
    }
    for (double entry : found)
      if (!std::isfinite(entry)) return false;
    std::copy(found, found + m, model);
    return true;
  }

  const RefineKernels& kernels_;
  const Planes& points_;
  const RefineLoss loss_;
  const int64_t steps_;
  const double inverse_square_;  // 1 / threshold^2
  double inside_ = 1;            // the same in the frame
  double limit_ = 0;
  std::vector<double> ratio_;
  std::vector<char> taken_;
  Planes near_;
  refine::Frame frame_;
};

// Models [B, H, parameters], points [B, N, d], threshold [B], all float64; mask [B, N] bool. Returns the models, each
// with its loss not above what it was, and the losses [B, H] (infinite for a model that is not finite).
std::tuple<Tensor, Tensor> refine_models(Tensor models, Tensor points, std::optional<Tensor> mask, Tensor threshold,
                                         Text kind, Text loss_name, int64_t steps) {
  const RefineLoss loss = loss_of(loss_name);
  return with_manifold(kind, [&](auto manifold) -> std::tuple<Tensor, Tensor> {
    using M = decltype(manifold);
    for (const Tensor* t : {&models, &points, &threshold})
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Double, "difflayers: a refinement is computed in float64");
    STD_TORCH_CHECK(models.dim() == 3 && models.size(2) == M::columns, "difflayers: models must be [B, H, ",
                    M::columns, "]");
    const int64_t batch = models.size(0), hypotheses = models.size(1);
    STD_TORCH_CHECK(points.dim() == 3 && points.size(0) == batch && points.size(2) == M::coordinates,
                    "difflayers: points must be [B, N, ", M::coordinates, "]");
    const int64_t count = points.size(1);
    STD_TORCH_CHECK(threshold.numel() == batch, "difflayers: one threshold for each problem");
    if (mask) {
      STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->numel() == batch * count,
                      "difflayers: mask must be bool [B, N]");
      mask = torch::stable::contiguous(*mask);
    }
    models = torch::stable::contiguous(models);
    points = torch::stable::contiguous(points);
    threshold = torch::stable::contiguous(threshold);
    Tensor result = torch::stable::empty_like(models);
    Tensor losses = torch::stable::new_empty(models, {batch, hypotheses});
    const auto* from = static_cast<const double*>(models.data_ptr());
    const auto* point = static_cast<const double*>(points.data_ptr());
    const auto* width = static_cast<const double*>(threshold.data_ptr());
    const bool* present = mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
    auto* to = static_cast<double*>(result.data_ptr());
    auto* value = static_cast<double*>(losses.data_ptr());

    std::vector<Planes> planes(static_cast<size_t>(batch));
    torch::stable::parallel_for(0, batch, std::max<int64_t>(1, 50000 / std::max<int64_t>(count, 1)),
                                [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        Planes& own = planes[static_cast<size_t>(b)];
        own.reserve(count, M::coordinates);
        for (int64_t i = 0; i < count; ++i) {
          const double* row = point + (b * count + i) * M::coordinates;
          bool good = present == nullptr || present[b * count + i];
          for (int c = 0; c < M::coordinates; ++c) good = good && std::isfinite(row[c]);
          if (!good) continue;
          for (int c = 0; c < M::coordinates; ++c)
            own.coordinates[static_cast<size_t>(c * own.stride + own.count)] = row[c];
          ++own.count;
        }
      }
    });
    // a model takes some 10 steps of 2 to 10 ns a point; 200 us are worth a thread
    const int64_t grain = std::max<int64_t>(1, 4000 / std::max<int64_t>(count, 1));
    torch::stable::parallel_for(0, batch * hypotheses, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin / std::max<int64_t>(hypotheses, 1); b * hypotheses < end; ++b) {
        Refinement<M> refinement(planes[static_cast<size_t>(b)], loss, width[b], steps);
        for (int64_t i = std::max(begin, b * hypotheses); i < std::min(end, (b + 1) * hypotheses); ++i) {
          std::copy(from + i * M::columns, from + (i + 1) * M::columns, to + i * M::columns);
          value[i] = refinement.run(to + i * M::columns);
        }
      }
    });
    return {result, losses};
  });
}

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  library.impl("refine_models", TORCH_BOX(&difflayers::cpu::refine_models));
}
