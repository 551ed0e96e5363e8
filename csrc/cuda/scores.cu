// Scores of hypotheses on CUDA, with the residuals and scores of the CPU. Nothing of the size models x points exists.
//
// Forward: a block takes a few models over all points. Backward: for the models, a block takes one model over all
// points; for the points, a thread takes one point over a part of the models, and the parts are added up afterwards, in
// a fixed order. at_least is not used: a block's models end together anyway.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../residuals.h"
#include "../scores.h"
#include "../scoring.h"

// weak, so that the library loads into a torch without CUDA
#pragma weak aoti_torch_get_current_cuda_stream

namespace difflayers::scoring {
namespace {

constexpr int threads = 128, warps = threads / 32;
constexpr int together = 4;  // models of a block
constexpr int tile = 16;     // models whose coefficients are in shared memory at a time
constexpr int64_t enough_blocks = 512;

template <class T>
struct Job {
  int64_t batch, hypotheses, count, parts;
  const T *models, *points;
  const bool *mask, *valid;  // or null
  const double* scale;
  int score;
  scorers::GaussianUniform gaussian_uniform{1};
  scorers::Magsac magsac{0};
  T* result;
  // backward only
  const T* gradient;
  T *of_models, *of_parts;  // of_parts [parts, B, N, d]
  double* of_scale;         // [B, H]

  __device__ bool has_model(int64_t model) const { return valid == nullptr || valid[model]; }
  __device__ bool has_point(int64_t point) const { return mask == nullptr || mask[point]; }
  // 1 / scale^2, NaN where no ratio can be formed: no point is active then
  __device__ T inverse_square(int64_t problem) const {
    const double size = scale[problem];
    const T inverse = static_cast<T>(1 / (size * size));
    return size > 0 && inverse < T(INFINITY) ? inverse : T(NAN);
  }
  // s of a ratio, 0 from the cutoff on and for NaN
  __device__ T value(T ratio) const {
    switch (score) {
      case 0: return ratio < T(1) ? T(1) : T(0);
      case 1: return ratio < T(1) ? T(1) - ratio : T(0);
      case 2: return ratio < T(scorers::GaussianUniform::cutoff) ? gaussian_uniform.value(ratio) : T(0);
      default: return ratio < T(1) ? magsac.value(ratio) : T(0);
    }
  }
  // its derivative; `active` is whether the point has one
  __device__ T slope(T ratio, bool& active) const {
    active = ratio < (score == 2 ? T(scorers::GaussianUniform::cutoff) : T(1));
    if (!active) return T(0);
    if (score == 1) return T(-1);
    return score == 2 ? gaussian_uniform.slope(ratio) : magsac.slope(ratio);
  }
};

template <class T, template <class> class Residual>
__device__ void coefficients_of(const T* model, double* wide, T* out) {
  using R = Residual<T>;
  double parameters[R::parameters];
  for (int k = 0; k < R::parameters; ++k) parameters[k] = model[k];
  R::expand(parameters, wide);
  for (int k = 0; k < R::coefficients; ++k) out[k] = static_cast<T>(wide[k]);
}

// The sum over the block, in thread 0.
__device__ double block_sum(double value, double* shared) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  __syncthreads();  // what shared holds may still be read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < warps; ++w) total += shared[w];
  return total;
}

template <class T, template <class> class Residual>
__global__ void __launch_bounds__(threads) forward_kernel(const Job<T> job) {
  using R = Residual<T>;
  __shared__ T coefficients[together][R::coefficients];
  __shared__ double shared[warps];
  const int64_t groups = (job.hypotheses + together - 1) / together;
  const int64_t problem = blockIdx.x / groups, first = blockIdx.x % groups * together;
  const int64_t models = min(int64_t(together), job.hypotheses - first), origin = problem * job.hypotheses + first;
  if (threadIdx.x < models) {
    double wide[R::coefficients];
    coefficients_of<T, Residual>(job.models + (origin + threadIdx.x) * R::parameters, wide, coefficients[threadIdx.x]);
  }
  __syncthreads();
  const T inverse = job.inverse_square(problem);
  T sums[together] = {};
  for (int64_t i = threadIdx.x; i < job.count; i += threads) {
    const int64_t point = problem * job.count + i;
    if (!job.has_point(point)) continue;
    T x[R::coordinates];
    for (int c = 0; c < R::coordinates; ++c) x[c] = job.points[point * R::coordinates + c];
    for (int h = 0; h < together; ++h) {
      if (h >= models) break;
      R residual;
      sums[h] += job.value(residual.squared(coefficients[h], x) * inverse);
    }
  }
  for (int h = 0; h < together; ++h) {
    const double total = block_sum(sums[h], shared);
    if (threadIdx.x == 0 && h < models)
      job.result[origin + h] = job.has_model(origin + h) ? static_cast<T>(total) : -T(INFINITY);
  }
}

template <class T, template <class> class Residual>
__global__ void __launch_bounds__(threads) models_kernel(const Job<T> job) {
  using R = Residual<T>;
  __shared__ double shared[warps];
  const int64_t model = blockIdx.x, problem = model / job.hypotheses;
  const T g = job.gradient[model], inverse = job.inverse_square(problem);
  const bool skip = g == T(0) || !job.has_model(model);
  double wide[R::coefficients], total[R::coefficients];
  T coefficients[R::coefficients], sums[R::coefficients] = {}, of_ratio = 0;
  coefficients_of<T, Residual>(job.models + model * R::parameters, wide, coefficients);
  for (int64_t i = threadIdx.x; i < job.count && !skip; i += threads) {
    const int64_t point = problem * job.count + i;
    if (!job.has_point(point)) continue;
    T x[R::coordinates], of_m[R::coefficients], of_x[R::coordinates];
    for (int c = 0; c < R::coordinates; ++c) x[c] = job.points[point * R::coordinates + c];
    R residual;
    const T ratio = residual.squared(coefficients, x) * inverse;
    bool active;
    const T slope = job.slope(ratio, active);
    if (!active) continue;
    of_ratio += slope * ratio;
    residual.backward(slope * g * inverse, coefficients, x, of_m, of_x);
    for (int k = 0; k < R::coefficients; ++k) sums[k] += of_m[k];
  }
  bool zero_throughout = true;  // then the model may be anything, NaN included
  for (int k = 0; k < R::coefficients; ++k) {
    total[k] = block_sum(sums[k], shared);
    zero_throughout &= total[k] == 0;
  }
  const double by_ratio = block_sum(of_ratio, shared);
  if (threadIdx.x != 0) return;
  double of_parameters[R::parameters] = {};
  if (!zero_throughout) R::contract(wide, total, of_parameters);
  for (int k = 0; k < R::parameters; ++k) job.of_models[model * R::parameters + k] = static_cast<T>(of_parameters[k]);
  job.of_scale[model] = skip || by_ratio == 0 ? 0 : -2 * double(g) * by_ratio / job.scale[problem];
}

template <class T, template <class> class Residual>
__global__ void __launch_bounds__(threads) points_kernel(const Job<T> job) {
  using R = Residual<T>;
  __shared__ T coefficients[tile][R::coefficients], weights[tile];
  const int64_t blocks = (job.count + threads - 1) / threads;
  const int64_t problem = blockIdx.x / blocks % job.batch, part = blockIdx.x / blocks / job.batch;
  const int64_t i = blockIdx.x % blocks * threads + threadIdx.x, point = problem * job.count + i;
  const int64_t size = (job.hypotheses + job.parts - 1) / job.parts;
  const int64_t last = min((part + 1) * size, job.hypotheses);
  const bool present = i < job.count && job.has_point(point);
  const T inverse = job.inverse_square(problem);
  T x[R::coordinates] = {}, sums[R::coordinates] = {};
  for (int c = 0; present && c < R::coordinates; ++c) x[c] = job.points[point * R::coordinates + c];
  for (int64_t first = part * size; first < last; first += tile) {
    __syncthreads();
    const int64_t mine = first + threadIdx.x;
    if (threadIdx.x < tile && mine < last) {
      const int64_t model = problem * job.hypotheses + mine;
      double wide[R::coefficients];
      coefficients_of<T, Residual>(job.models + model * R::parameters, wide, coefficients[threadIdx.x]);
      weights[threadIdx.x] = job.has_model(model) ? job.gradient[model] : T(0);
    }
    __syncthreads();
    for (int h = 0; h < tile && first + h < last; ++h) {
      if (!present || weights[h] == T(0)) continue;
      T of_m[R::coefficients], of_x[R::coordinates];
      R residual;
      const T ratio = residual.squared(coefficients[h], x) * inverse;
      bool active;
      const T slope = job.slope(ratio, active);
      if (!active) continue;
      residual.backward(slope * weights[h] * inverse, coefficients[h], x, of_m, of_x);
      for (int c = 0; c < R::coordinates; ++c) sums[c] += of_x[c];
    }
  }
  if (i >= job.count) return;
  T* to = job.of_parts + (part * job.batch * job.count + point) * R::coordinates;
  for (int c = 0; c < R::coordinates; ++c) to[c] = sums[c];
}

// result[i] = sum over j < terms of from[i * outer + j * inner]
template <class T>
__global__ void __launch_bounds__(threads)
    sum_kernel(const T* from, T* result, int64_t count, int64_t terms, int64_t outer, int64_t inner) {
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (i >= count) return;
  T sum = 0;
  for (int64_t j = 0; j < terms; ++j) sum += from[i * outer + j * inner];
  result[i] = sum;
}

void check(cudaError_t error, const char* action) {
  STD_TORCH_CHECK(error == cudaSuccess, "difflayers: CUDA failed to ", action, ": ", cudaGetErrorString(error));
}

// Calls f with the stream, on the device of the tensor.
template <class F>
void on_device(const Tensor& tensor, F f) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "difflayers: this torch has no CUDA");
  const int device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(cudaSetDevice(device), "select the device");  // for our own copy of the runtime
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  f(static_cast<cudaStream_t>(stream));
  check(cudaGetLastError(), "launch a scoring kernel");
}

unsigned grid(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "difflayers: too many models or points at once: ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

template <class T, template <class> class Residual>
void forward(const Job<T>& job, cudaStream_t stream) {
  const int64_t blocks = job.batch * ((job.hypotheses + together - 1) / together);
  forward_kernel<T, Residual><<<grid(blocks), threads, 0, stream>>>(job);
}

template <class T, template <class> class Residual>
void backward(const Job<T>& job, cudaStream_t stream) {
  models_kernel<T, Residual><<<grid(job.batch * job.hypotheses), threads, 0, stream>>>(job);
  const int64_t blocks = job.parts * job.batch * ((job.count + threads - 1) / threads);
  if (blocks > 0) points_kernel<T, Residual><<<grid(blocks), threads, 0, stream>>>(job);
}

template <class T>
void add_up(const T* from, T* result, int64_t count, int64_t terms, int64_t outer, int64_t inner,
            cudaStream_t stream) {
  if (count == 0) return;
  sum_kernel<T><<<grid((count + threads - 1) / threads), threads, 0, stream>>>(from, result, count, terms, outer, inner);
}

// f.template operator()<Residual>() for the residual of this index
template <class F>
void with_residual(int64_t index, F f) {
  switch (index) {
    case 0: return f.template operator()<residuals::Sampson>();
    case 1: return f.template operator()<residuals::SymmetricEpipolar>();
    case 2: return f.template operator()<residuals::Transfer>();
    case 3: return f.template operator()<residuals::SymmetricTransfer>();
    case 4: return f.template operator()<residuals::Line>();
    case 5: return f.template operator()<residuals::Plane>();
    case 6: return f.template operator()<residuals::Circle>();
    case 7: return f.template operator()<residuals::Rigid>();
    default: return f.template operator()<residuals::Reprojection>();
  }
}

template <class T>
Job<T> job_of(const Arguments& a, double parameter) {
  Job<T> job{};
  job.batch = a.batch;
  job.hypotheses = a.hypotheses;
  job.count = a.count;
  job.models = data<T>(a.models);
  job.points = data<T>(a.points);
  job.mask = data<bool>(a.mask);
  job.valid = data<bool>(a.valid);
  job.scale = data<double>(a.scale);
  job.score = static_cast<int>(a.score);
  if (job.score == 2) job.gaussian_uniform = scorers::GaussianUniform(parameter);
  return job;
}

template <class T>
void run_forward(const Arguments& a, double parameter, const Tensor& result) {
  Job<T> job = job_of<T>(a, parameter);
  job.result = data<T>(result);
  on_device(a.points, [&](cudaStream_t stream) {
    with_residual(a.residual, [&]<template <class> class R>() { forward<T, R>(job, stream); });
  });
}

// outside of a template, where nvcc mistranslates the braces
Tensor room_for_parts(const Arguments& a, int64_t parts) {
  return torch::stable::new_empty(a.points, {parts, a.batch, a.count, a.coordinates});
}
Tensor room_for_scales(const Arguments& a) { return torch::stable::new_empty(a.scale, {a.batch, a.hypotheses}); }

template <class T>
void run_backward(const Arguments& a, double parameter, const Tensor& gradient, const Tensor& of_models,
                  const Tensor& of_points, const Tensor& of_scale) {
  Job<T> job = job_of<T>(a, parameter);
  const int64_t blocks = std::max<int64_t>(1, a.batch * ((a.count + threads - 1) / threads));
  job.parts = std::clamp<int64_t>(enough_blocks / blocks, 1, (a.hypotheses + tile - 1) / tile);
  const Tensor parts = room_for_parts(a, job.parts), scales = room_for_scales(a);
  job.gradient = data<T>(gradient);
  job.of_models = data<T>(of_models);
  job.of_parts = data<T>(parts);
  job.of_scale = data<double>(scales);
  const int64_t numbers = a.batch * a.count * a.coordinates;
  on_device(a.points, [&](cudaStream_t stream) {
    with_residual(a.residual, [&]<template <class> class R>() { backward<T, R>(job, stream); });
    add_up(data<T>(parts), data<T>(of_points), numbers, job.parts, 1, numbers, stream);
    add_up(data<double>(scales), data<double>(of_scale), a.batch, a.hypotheses, a.hypotheses, 1, stream);
  });
}

Tensor hypothesis_scores(Tensor models, Tensor points, std::optional<Tensor> mask, std::optional<Tensor> valid,
                         Tensor scale, std::optional<Tensor>, Text residual, Text score,
                         double parameter) {
  const Arguments a(models, points, mask, valid, scale, residual, score);
  Tensor result = torch::stable::new_empty(a.points, {a.batch, a.hypotheses});
  if (result.numel() > 0) a.wide ? run_forward<double>(a, parameter, result) : run_forward<float>(a, parameter, result);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> hypothesis_scores_backward(Tensor gradient, Tensor models, Tensor points,
                                                              std::optional<Tensor> mask, std::optional<Tensor> valid,
                                                              Tensor scale, Text residual, Text score,
                                                              double parameter) {
  const Arguments a(models, points, mask, valid, scale, residual, score);
  a.expect_gradient(gradient);
  gradient = torch::stable::contiguous(gradient);
  Tensor of_models = torch::stable::empty_like(a.models), of_points = torch::stable::empty_like(a.points);
  Tensor of_scale = torch::stable::empty_like(a.scale);
  if (score == "count" || a.batch * a.hypotheses == 0) {
    for (Tensor* each : {&of_models, &of_points, &of_scale}) torch::stable::zero_(*each);
  } else if (a.wide) {
    run_backward<double>(a, parameter, gradient, of_models, of_points, of_scale);
  } else {
    run_backward<float>(a, parameter, gradient, of_models, of_points, of_scale);
  }
  return {of_models, of_points, of_scale};
}

}  // namespace
}  // namespace difflayers::scoring

STABLE_TORCH_LIBRARY_IMPL(difflayers, CUDA, library) {
  library.impl("hypothesis_scores", TORCH_BOX(&difflayers::scoring::hypothesis_scores));
  library.impl("hypothesis_scores_backward", TORCH_BOX(&difflayers::scoring::hypothesis_scores_backward));
}
