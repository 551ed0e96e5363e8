// Scores of hypotheses on the CPU: points into structure-of-arrays form, models over threads, and the registrations.
#include "../scoring.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "instruction_set.h"
#include "scoring_kernels.h"

namespace difflayers::cpu {
namespace {

using scoring::Arguments;
using scoring::data;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t widest = 16;              // numbers in the widest pack
constexpr double worth_a_thread = 200000;  // ns

// The present points of each problem as rows of coordinates [B, d, stride], the rest NaN; how many they are [B].
struct Columns {
  int64_t stride;
  Tensor coordinates, counts;

  explicit Columns(const Arguments& a)
      : stride((std::max<int64_t>(a.count, 1) + widest - 1) / widest * widest),
        coordinates(torch::stable::new_empty(a.points, {a.batch, a.coordinates, stride})),
        counts(torch::stable::new_empty(a.points, {a.batch}, ScalarType::Long)) {
    a.wide ? fill<double>(a) : fill<float>(a);
  }

  template <class S>
  void fill(const Arguments& a) const {
    const int64_t d = a.coordinates, grain = std::max<int64_t>(1, 200000 / (a.count * d + 1));
    torch::stable::parallel_for(0, a.batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const S* from = data<S>(a.points) + b * a.count * d;
        const bool* present = a.mask ? data<bool>(a.mask) + b * a.count : nullptr;
        S* to = data<S>(coordinates) + b * d * stride;
        int64_t at = 0;
        for (int64_t i = 0; i < a.count; ++i) {
          if (present != nullptr && !present[i]) continue;
          for (int64_t c = 0; c < d; ++c) to[c * stride + at] = from[i * d + c];
          ++at;
        }
        for (int64_t c = 0; c < d; ++c)
          std::fill(to + c * stride + at, to + (c + 1) * stride, std::numeric_limits<S>::quiet_NaN());
        data<int64_t>(counts)[b] = at;
      }
    });
  }
};

ScoringJob job_of(const Arguments& a, const Columns& columns, double parameter) {
  ScoringJob job{};
  job.hypotheses = a.hypotheses;
  job.stride = columns.stride;
  job.models = a.models.data_ptr();
  job.coordinates = columns.coordinates.data_ptr();
  job.counts = data<int64_t>(columns.counts);
  job.valid = data<bool>(a.valid);
  job.scale = data<double>(a.scale);
  job.parameter = parameter;
  return job;
}

// About how long a model takes, in ns.
double cost_of(const Arguments& a, bool backward) {
  const double each = (a.score < 2 ? 0.5 : 2) * (a.wide ? 3 : 1) * (backward ? 2.5 : 1);
  return each * static_cast<double>(a.count) + 100;
}

Tensor hypothesis_scores(Tensor models, Tensor points, std::optional<Tensor> mask, std::optional<Tensor> valid,
                         Tensor scale, std::optional<Tensor> at_least, Text residual, Text score,
                         double parameter) {
  const Arguments a(models, points, mask, valid, scale, residual, score);
  if (at_least) {
    a.expect(*at_least, ScalarType::Double, 1, "at_least must be float64 [B]");
    at_least = torch::stable::contiguous(*at_least);
  }
  const Columns columns(a);
  Tensor result = torch::stable::new_empty(a.points, {a.batch, a.hypotheses});
  ScoringJob job = job_of(a, columns, parameter);
  job.at_least = data<double>(at_least);
  job.result = result.data_ptr();
  const auto kernel = instruction_set().scoring->forward[a.wide][a.residual][a.score];
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(worth_a_thread / cost_of(a, false)));
  torch::stable::parallel_for(0, a.batch * a.hypotheses, grain,
                              [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return result;
}

// A problem's models are shared out in `parts`, each with a gradient of the points of its own.
template <class S>
void differentiate(const Arguments& a, const Columns& columns, const ScoringJob& job, ScoringKernels::Backward kernel,
                   const Tensor& of_points) {
  const double work = cost_of(a, true) * static_cast<double>(a.hypotheses);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = std::min((threads + a.batch - 1) / a.batch, static_cast<int64_t>(work / worth_a_thread));
  const int64_t parts = std::clamp<int64_t>(wanted, 1, a.hypotheses), size = (a.hypotheses + parts - 1) / parts;
  const int64_t d = a.coordinates, room = d * columns.stride;
  const Tensor sums = torch::stable::new_empty(a.points, {a.batch * parts, d, columns.stride});
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(worth_a_thread * static_cast<double>(parts) / work));
  torch::stable::parallel_for(0, a.batch * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t problem = part / parts, first = std::min(part % parts * size, a.hypotheses);
      S* mine = data<S>(sums) + part * room;
      std::fill(mine, mine + room, S(0));
      const int64_t last = std::min(first + size, a.hypotheses), origin = problem * a.hypotheses;
      if (first < last) kernel(job, origin + first, origin + last, mine);
    }
  });
  torch::stable::parallel_for(0, a.batch, std::max<int64_t>(1, 200000 / (a.count * d * parts + 1)),
                              [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const bool* present = a.mask ? data<bool>(a.mask) + b * a.count : nullptr;
      S* to = data<S>(of_points) + b * a.count * d;
      const S* from = data<S>(sums) + b * parts * room;
      int64_t at = 0;
      for (int64_t i = 0; i < a.count; ++i) {
        const bool here = present == nullptr || present[i];
        for (int64_t c = 0; c < d; ++c) {
          S sum = 0;
          for (int64_t part = 0; here && part < parts; ++part) sum += from[part * room + c * columns.stride + at];
          to[i * d + c] = sum;
        }
        at += here;
      }
    }
  });
}

// The gradients by models [B, H, parameters], points [B, N, d] and scale [B].
std::tuple<Tensor, Tensor, Tensor> hypothesis_scores_backward(Tensor gradient, Tensor models, Tensor points,
                                                              std::optional<Tensor> mask, std::optional<Tensor> valid,
                                                              Tensor scale, Text residual, Text score,
                                                              double parameter) {
  const Arguments a(models, points, mask, valid, scale, residual, score);
  a.expect_gradient(gradient);
  gradient = torch::stable::contiguous(gradient);
  Tensor of_models = torch::stable::empty_like(a.models), of_points = torch::stable::empty_like(a.points);
  Tensor of_scale = torch::stable::empty_like(a.scale);
  const auto kernel = instruction_set().scoring->backward[a.wide][a.residual][a.score];
  if (kernel == nullptr || a.batch * a.hypotheses == 0) {
    for (Tensor* each : {&of_models, &of_points, &of_scale}) torch::stable::zero_(*each);
    return {of_models, of_points, of_scale};
  }
  const Columns columns(a);
  const Tensor of_scales = torch::stable::new_empty(a.scale, {a.batch, a.hypotheses});
  ScoringJob job = job_of(a, columns, parameter);
  job.gradient = gradient.data_ptr();
  job.of_models = of_models.data_ptr();
  job.of_scale = data<double>(of_scales);
  a.wide ? differentiate<double>(a, columns, job, kernel, of_points)
         : differentiate<float>(a, columns, job, kernel, of_points);
  for (int64_t b = 0; b < a.batch; ++b) {
    double sum = 0;
    for (int64_t h = 0; h < a.hypotheses; ++h) sum += job.of_scale[b * a.hypotheses + h];
    data<double>(of_scale)[b] = sum;
  }
  return {of_models, of_points, of_scale};
}

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  library.impl("hypothesis_scores", TORCH_BOX(&difflayers::cpu::hypothesis_scores));
  library.impl("hypothesis_scores_backward", TORCH_BOX(&difflayers::cpu::hypothesis_scores_backward));
}
