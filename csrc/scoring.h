// What the CPU and CUDA halves of the scoring operators share: names, and the checks of the arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

#include "text.h"

namespace difflayers::scoring {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Kind {
  const char* name;
  int64_t parameters, coordinates;
};
// in the order of the tables of kernels
inline constexpr Kind residual_kinds[] = {
    {"sampson", 9, 4}, {"symmetric_epipolar", 9, 4}, {"transfer", 9, 4}, {"symmetric_transfer", 9, 4}, {"line", 3, 2},
    {"plane", 4, 3},   {"circle", 3, 2},             {"rigid", 12, 6},   {"reprojection", 12, 5}};
inline constexpr Kind score_kinds[] = {{"count", 0, 0}, {"msac", 0, 0}, {"gaussian_uniform", 0, 0}, {"magsac", 0, 0}};

template <size_t count>
int64_t index_of(const Kind (&kinds)[count], const std::string& name, const char* what) {
  for (size_t i = 0; i < count; ++i)
    if (name == kinds[i].name) return static_cast<int64_t>(i);
  STD_TORCH_CHECK(false, "difflayers: unknown ", what, " '", name, "'");
}

// The arguments of both operators, checked and contiguous.
struct Arguments {
  Tensor models, points, scale;
  std::optional<Tensor> mask, valid;
  int64_t residual, score, batch, hypotheses, count, parameters, coordinates;
  bool wide;  // float64

  Arguments(const Tensor& given_models, const Tensor& given_points, const std::optional<Tensor>& given_mask,
            const std::optional<Tensor>& given_valid, const Tensor& given_scale, const std::string& residual_name,
            const std::string& score_name)
      : models(torch::stable::contiguous(given_models)),
        points(torch::stable::contiguous(given_points)),
        scale(torch::stable::contiguous(given_scale)),
        residual(index_of(residual_kinds, residual_name, "residual")),
        score(index_of(score_kinds, score_name, "score")) {
    const ScalarType type = points.scalar_type();
    parameters = residual_kinds[residual].parameters;
    coordinates = residual_kinds[residual].coordinates;
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "difflayers: points must be float32 or float64");
    STD_TORCH_CHECK(models.scalar_type() == type, "difflayers: models must have the dtype of points");
    STD_TORCH_CHECK(points.dim() == 3 && points.size(2) == coordinates, "difflayers: points must be [B, N, ",
                    coordinates, "] for the residual ", residual_name);
    STD_TORCH_CHECK(models.dim() == 3 && models.size(2) == parameters && models.size(0) == points.size(0),
                    "difflayers: models must be [B, H, ", parameters, "] for the residual ", residual_name);
    wide = type == ScalarType::Double;
    batch = points.size(0);
    count = points.size(1);
    hypotheses = models.size(1);
    expect(scale, ScalarType::Double, 1, "scale must be float64 [B]");
    if (given_mask) {
      mask = torch::stable::contiguous(*given_mask);
      expect(*mask, ScalarType::Bool, count, "mask must be bool [B, N]");
    }
    if (given_valid) {
      valid = torch::stable::contiguous(*given_valid);
      expect(*valid, ScalarType::Bool, hypotheses, "valid must be bool [B, H]");
    }
  }

  void expect(const Tensor& tensor, ScalarType type, int64_t each, const char* rule) const {
    STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.numel() == batch * each, "difflayers: ", rule);
  }
  void expect_gradient(const Tensor& gradient) const {
    expect(gradient, points.scalar_type(), hypotheses, "the gradient must be [B, H] in the dtype of points");
  }
};

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

}  // namespace difflayers::scoring
