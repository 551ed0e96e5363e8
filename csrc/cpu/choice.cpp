// The estimators on the CPU: checks of what the Python side promises, rows over threads, and the registrations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../text.h"
#include "choice_kernels.h"
#include "instruction_set.h"

namespace difflayers::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Tensor rows_of(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "difflayers: ", name, " has the wrong dtype");
  return torch::stable::contiguous(tensor);
}

// The job for logits (or anything else of that shape), temperature not yet set.
ChoiceJob job_of(const Tensor& like, const std::optional<Tensor>& temperature, double constant) {
  STD_TORCH_CHECK(like.dim() == 2, "difflayers: rows must be two-dimensional, got ", like.dim(), " dimensions");
  ChoiceJob job{};
  job.n = like.size(1);
  job.constant = static_cast<float>(constant);
  if (temperature) {
    STD_TORCH_CHECK(temperature->numel() == like.size(0), "difflayers: one temperature for each row");
    job.temperature = static_cast<const float*>(temperature->data_ptr());
  }
  return job;
}

void run(ChoiceKernels::Kernel kernel, const ChoiceJob& job, int64_t rows, double nanoseconds) {
  // 200 us are worth a thread
  const auto cost = static_cast<int64_t>(nanoseconds * static_cast<double>(job.n)) + 20;
  const int64_t grain = std::max<int64_t>(1, 200000 / cost);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void expect_shape(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == like.size(0) && tensor.size(1) == like.size(1),
                  "difflayers: ", name, " does not have the shape of the rows");
}

std::optional<Tensor> temperatures(const std::optional<Tensor>& temperature) {
  if (!temperature) return std::nullopt;
  return rows_of(*temperature, ScalarType::Float, "temperature");
}

std::tuple<Tensor, Tensor> gumbel_softmax(Tensor logits, Tensor bits, std::optional<Tensor> temperature,
                                          double constant, bool hard) {
  logits = rows_of(logits, ScalarType::Float, "logits");
  bits = rows_of(bits, ScalarType::Int, "bits");
  expect_shape(bits, logits, "bits");
  temperature = temperatures(temperature);
  ChoiceJob job = job_of(logits, temperature, constant);
  Tensor soft = torch::stable::empty_like(logits);
  Tensor sample = hard ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0});
  job.logits = static_cast<const float*>(logits.data_ptr());
  job.bits = static_cast<const int32_t*>(bits.data_ptr());
  job.result = static_cast<float*>(soft.data_ptr());
  job.sample = hard ? static_cast<float*>(sample.data_ptr()) : nullptr;
  run(instruction_set().choice->gumbel_softmax, job, logits.size(0), 3);
  return {soft, sample};
}

Tensor gumbel_softmax_backward(Tensor gradient, Tensor soft, std::optional<Tensor> temperature, double constant) {
  soft = rows_of(soft, ScalarType::Float, "soft");
  gradient = rows_of(gradient, ScalarType::Float, "gradient");
  expect_shape(gradient, soft, "gradient");
  temperature = temperatures(temperature);
  ChoiceJob job = job_of(soft, temperature, constant);
  Tensor result = torch::stable::empty_like(soft);
  job.gradient = static_cast<const float*>(gradient.data_ptr());
  job.soft = static_cast<const float*>(soft.data_ptr());
  job.result = static_cast<float*>(result.data_ptr());
  run(instruction_set().choice->gumbel_softmax_backward, job, soft.size(0), 0.5);
  return result;
}

std::tuple<Tensor, Tensor> choose(Tensor logits, Tensor uniform) {
  logits = rows_of(logits, ScalarType::Float, "logits");
  uniform = rows_of(uniform, ScalarType::Double, "uniform");
  ChoiceJob job = job_of(logits, std::nullopt, 1);
  STD_TORCH_CHECK(uniform.numel() == logits.size(0), "difflayers: one uniform number for each row");
  Tensor sample = torch::stable::empty_like(logits), marked = torch::stable::empty_like(logits);
  job.logits = static_cast<const float*>(logits.data_ptr());
  job.uniform = static_cast<const double*>(uniform.data_ptr());
  job.sample = static_cast<float*>(sample.data_ptr());
  job.result = static_cast<float*>(marked.data_ptr());
  run(instruction_set().choice->choose, job, logits.size(0), 1);
  return {sample, marked};
}

Tensor choose_backward(Tensor gradient, Tensor marked, std::optional<Tensor> temperature, double constant,
                       Text kind) {
  marked = rows_of(marked, ScalarType::Float, "marked");
  gradient = rows_of(gradient, ScalarType::Float, "gradient");
  expect_shape(gradient, marked, "gradient");
  STD_TORCH_CHECK(kind == "reinmax" || kind == "straight_through", "difflayers: unknown estimator ", kind);
  temperature = temperatures(temperature);
  ChoiceJob job = job_of(marked, temperature, constant);
  Tensor result = torch::stable::empty_like(marked);
  job.logits = static_cast<const float*>(marked.data_ptr());
  job.gradient = static_cast<const float*>(gradient.data_ptr());
  job.result = static_cast<float*>(result.data_ptr());
  const auto& kernels = *instruction_set().choice;
  run(kind == "reinmax" ? kernels.reinmax_backward : kernels.straight_through_backward, job, marked.size(0), 1);
  return result;
}

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  library.impl("gumbel_softmax", TORCH_BOX(&difflayers::cpu::gumbel_softmax));
  library.impl("gumbel_softmax_backward", TORCH_BOX(&difflayers::cpu::gumbel_softmax_backward));
  library.impl("choose", TORCH_BOX(&difflayers::cpu::choose));
  library.impl("choose_backward", TORCH_BOX(&difflayers::cpu::choose_backward));
}
