// What the CPU and CUDA halves of the permutahedron operators share: reading the arguments, allocating the results.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cfloat>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "isotonic.h"
#include "text.h"

namespace difflayers::permutahedron {

using isotonic::Task;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One call's numbers. Arrays are [rows, n] unless said.
template <class T>
struct Job {
  int64_t rows;
  int32_t n, k;
  double constant;        // the temperature of every row ...
  const T* temperature;   // ... or [rows]
  const T* x;
  const T* gradient;      // backward only
  T* result;              // backward: read only
  int32_t *order, *starts;
  T* of_x;                // backward only
  T* of_temperature;      // backward only: [rows] or null

  DL_HD double temperature_of(int64_t row) const {
    const double t = temperature != nullptr ? static_cast<double>(temperature[row]) : constant;
    return t < DBL_MIN ? DBL_MIN : t;  // the inverse of a smaller one would be inf
  }
};

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Both without a call through the dispatcher where none is needed: for small inputs such calls are what costs.
inline Tensor contiguous_of(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor empty(const Tensor& like, int64_t rows, int64_t columns, int32_t dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  int32_t device_type = 0;
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, sizes, strides, dtype, device_type, like.get_device_index(), &made));
  return Tensor(made);
}

inline Tensor empty_as(const Tensor& like, int64_t columns) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty(like, like.size(0), columns, dtype);
}

template <class T>
Job<T> job_of(const Tensor& x, const std::optional<Tensor>& temperature, double constant, int64_t k) {
  Job<T> job{};
  job.rows = x.size(0);
  job.n = static_cast<int32_t>(x.size(1));
  job.k = static_cast<int32_t>(k);
  job.constant = constant;
  job.temperature = temperature ? data<T>(*temperature) : nullptr;
  job.x = data<T>(x);
  return job;
}

inline void check(const Tensor& x, const std::optional<Tensor>& temperature, int64_t k) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "difflayers: x must be float32 or float64");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) < (int64_t(1) << 31), "difflayers: x must be [B, n], n < 2^31");
  STD_TORCH_CHECK(0 <= k && k <= x.size(1), "difflayers: k must be in [0, n]");
  STD_TORCH_CHECK(!temperature || (temperature->scalar_type() == type && temperature->numel() == x.size(0)),
                  "difflayers: temperature must be [B, 1], in the dtype of x");
}

// Calls f with the task, the regularisation and the number type as types.
template <class F>
void with_types(const std::string& task, bool entropic, bool is_double, F f) {
  const auto with_number = [&](auto which, auto kl) {
    is_double ? f(which, kl, double{}) : f(which, kl, float{});
  };
  const auto with_kl = [&](auto which) {
    entropic ? with_number(which, std::true_type{}) : with_number(which, std::false_type{});
  };
  if (task == "rank") return with_kl(std::integral_constant<Task, Task::rank>{});
  if (task == "sort") return with_kl(std::integral_constant<Task, Task::sort>{});
  if (task == "topk") return with_kl(std::integral_constant<Task, Task::topk>{});
  STD_TORCH_CHECK(false, "difflayers: unknown task '", task, "'");
}

// The two operators over a device's implementation.
template <class Device>
struct Operators {
  static std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, std::optional<Tensor> temperature, double constant,
                                                    Text task, bool entropic, int64_t k) {
    check(x, temperature, k);
    x = contiguous_of(x);
    if (temperature) temperature = contiguous_of(*temperature);
    const Tensor result = empty_as(x, x.size(1));
    const Tensor order = empty(x, x.size(0), x.size(1), aoti_torch_dtype_int32());
    const Tensor starts = empty(x, x.size(0), x.size(1), aoti_torch_dtype_int32());
    with_types(task, entropic, x.scalar_type() == ScalarType::Double, [&](auto which, auto kl, auto number) {
      using T = decltype(number);
      Job<T> job = job_of<T>(x, temperature, constant, k);
      job.result = data<T>(result);
      job.order = data<int32_t>(order);
      job.starts = data<int32_t>(starts);
      if (x.numel() > 0) Device::template forward<which.value, kl.value>(x, job);
    });
    return {result, order, starts};
  }

  static std::tuple<Tensor, Tensor> backward(Tensor gradient, Tensor x, std::optional<Tensor> temperature,
                                             Tensor result, Tensor order, Tensor starts, double constant,
                                             Text task, bool entropic, bool of_temperature) {
    check(x, temperature, 0);
    for (const Tensor& each : {gradient, result, order, starts})
      STD_TORCH_CHECK(each.dim() == 2 && each.size(0) == x.size(0) && each.size(1) == x.size(1),
                      "difflayers: everything must have the shape of x");
    for (const Tensor& each : {gradient, result})
      STD_TORCH_CHECK(each.scalar_type() == x.scalar_type(), "difflayers: gradients must have the dtype of x");
    for (const Tensor& each : {order, starts})
      STD_TORCH_CHECK(each.scalar_type() == ScalarType::Int, "difflayers: order and starts must be int32");
    gradient = contiguous_of(gradient);
    x = contiguous_of(x);
    result = contiguous_of(result);
    order = contiguous_of(order);
    starts = contiguous_of(starts);
    if (temperature) temperature = contiguous_of(*temperature);
    const Tensor of_x = empty_as(x, x.size(1));
    Tensor by_temperature = empty_as(x, of_temperature ? 1 : 0);
    if (x.numel() == 0) torch::stable::zero_(by_temperature);
    with_types(task, entropic, x.scalar_type() == ScalarType::Double, [&](auto which, auto kl, auto number) {
      using T = decltype(number);
      Job<T> job = job_of<T>(x, temperature, constant, 0);
      job.gradient = data<T>(gradient);
      job.result = data<T>(result);
      job.order = data<int32_t>(order);
      job.starts = data<int32_t>(starts);
      job.of_x = data<T>(of_x);
      job.of_temperature = of_temperature ? data<T>(by_temperature) : nullptr;
      if (x.numel() > 0) Device::template backward<which.value, kl.value>(x, job);
    });
    return {of_x, by_temperature};
  }
};

template <Task task, bool entropic, class T>
DL_HD void differentiate_row(const Job<T>& job, int64_t row) {
  const int64_t at = row * job.n;
  const double by_temperature = isotonic::differentiate<task, entropic, T>(
      job.gradient + at, job.x + at, job.result + at, job.order + at, job.starts + at, job.n,
      job.temperature_of(row), job.of_temperature != nullptr, job.of_x + at);
  if (job.of_temperature != nullptr) job.of_temperature[row] = static_cast<T>(by_temperature);
}

}  // namespace difflayers::permutahedron
