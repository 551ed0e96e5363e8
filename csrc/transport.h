// What the CPU and CUDA halves of the transport operators share: reading the arguments, allocating the results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "text.h"

namespace difflayers {

using torch::stable::Tensor;

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// One call's arguments, contiguous. what: 0 values, 1 matrix, 2 carry, 3 carry_transposed.
struct Call {
  Tensor scores;
  std::optional<Tensor> steepness, payload;
  int what;
  std::string network;
  int64_t first, last;
  int swap;
  double parameter, constant;
  bool hard, is_double;
  int64_t rows, n, m;

  int64_t wanted() const { return last - first; }
  // payload columns that travel: all of the matrix, else m
  int64_t columns() const { return what == 1 ? n : m; }
  // whether lanes hold columns of one sample rather than samples (estimated from operation counts to pay from 5 columns on)
  bool by_column() const { return what == 1 || (what != 0 && m > 4); }

  std::vector<int64_t> result_shape() const {
    switch (what) {
      case 0: return {rows, wanted()};
      case 1: return {rows, wanted(), n};
      case 2: return {rows, wanted(), m};
      default: return {rows, n, m};
    }
  }
};

struct Directions {
  Tensor scores;
  std::optional<Tensor> steepness, payload;
};

struct DoubleResult {
  Tensor of_gradient, of_scores, of_steepness, of_payload;
};

inline int index_of(const std::string& name, const std::vector<const char*>& names, const char* argument) {
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return static_cast<int>(i);
  STD_TORCH_CHECK(false, "difflayers: unknown ", argument, " '", name, "'");
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

inline Call call_of(const Tensor& scores, const std::optional<Tensor>& steepness, const std::optional<Tensor>& payload,
                    const std::string& what, const std::string& network, int64_t first, int64_t last,
                    const std::string& swap, double parameter, double constant, bool hard) {
  using torch::headeronly::ScalarType;
  const ScalarType type = scores.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "difflayers: scores must be float32 or float64");
  STD_TORCH_CHECK(scores.dim() == 2, "difflayers: scores must be [B, n]");
  Call call{torch::stable::contiguous(scores),
            contiguous(steepness),
            contiguous(payload),
            index_of(what, {"values", "matrix", "carry", "carry_transposed"}, "what"),
            network,
            first,
            last,
            index_of(swap, {"logistic", "logistic_art", "gaussian", "reciprocal", "cauchy", "optimal"}, "swap"),
            parameter,
            constant,
            hard,
            type == ScalarType::Double,
            scores.size(0),
            scores.size(1),
            0};
  STD_TORCH_CHECK(0 <= first && first <= last && last <= call.n, "difflayers: outputs out of range");
  STD_TORCH_CHECK(!steepness || (steepness->scalar_type() == type && steepness->dim() == 1 &&
                                 steepness->size(0) == call.rows),
                  "difflayers: steepness must be [B], in the dtype of scores");
  STD_TORCH_CHECK(payload.has_value() == (call.what >= 2), "difflayers: a payload is for carrying only");
  if (payload) {
    const int64_t length = call.what == 2 ? call.n : call.wanted();
    STD_TORCH_CHECK(payload->scalar_type() == type && payload->dim() == 3 && payload->size(1) == length &&
                        (payload->size(0) == 1 || payload->size(0) == call.rows),
                    "difflayers: payload must be [B or 1, ", length, ", m], in the dtype of scores");
    call.m = payload->size(2);
  }
  return call;
}

inline Tensor like(const Tensor& reference, std::vector<int64_t> shape) {
  return torch::stable::new_empty(reference, shape);
}

// The three operators over a device's implementation.
template <class Device>
struct TransportOperators {
  static Tensor forward(Tensor scores, std::optional<Tensor> steepness, std::optional<Tensor> payload, Text what,
                        Text network, int64_t first, int64_t last, Text swap, double parameter,
                        double constant, bool hard) {
    const Call call = call_of(scores, steepness, payload, what, network, first, last, swap, parameter, constant, hard);
    Tensor result = like(scores, call.result_shape());
    if (result.numel() > 0) Device::forward(call, result);
    return result;
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(Tensor gradient, Tensor scores, std::optional<Tensor> steepness,
                                                     std::optional<Tensor> payload, Text what,
                                                     Text network, int64_t first, int64_t last,
                                                     Text swap, double parameter, double constant, bool hard,
                                                     bool of_steepness, bool of_payload) {
    const Call call = call_of(scores, steepness, payload, what, network, first, last, swap, parameter, constant, hard);
    check_gradient(call, gradient);
    STD_TORCH_CHECK(payload.has_value() || !of_payload, "difflayers: there is no payload to take a gradient by");
    Tensor by_scores = like(scores, {call.rows, call.n});
    Tensor by_steepness = like(scores, {of_steepness ? call.rows : 0});
    Tensor by_payload = of_payload ? like(scores, {call.rows, payload->size(1), call.m}) : like(scores, {0});
    if (gradient.numel() > 0)
      Device::backward(call, torch::stable::contiguous(gradient), by_scores, by_steepness, by_payload);
    else
      for (Tensor* t : {&by_scores, &by_steepness, &by_payload}) torch::stable::zero_(*t);
    return {by_scores, by_steepness, by_payload};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(
      Tensor h_scores, std::optional<Tensor> h_steepness, std::optional<Tensor> h_payload, Tensor gradient,
      Tensor scores, std::optional<Tensor> steepness, std::optional<Tensor> payload, Text what, Text network,
      int64_t first, int64_t last, Text swap, double parameter, double constant, bool hard) {
    const Call call = call_of(scores, steepness, payload, what, network, first, last, swap, parameter, constant, hard);
    check_gradient(call, gradient);
    check_direction(h_scores, {call.rows, call.n}, call, "scores");
    STD_TORCH_CHECK((steepness || !h_steepness) && (payload || !h_payload),
                    "difflayers: a direction of an argument that is None");
    if (h_steepness) check_direction(*h_steepness, {call.rows}, call, "steepness");
    if (h_payload) {  // that of a payload [1, ...], the same in every row, may differ from row to row
      const int64_t first = h_payload->dim() > 0 && h_payload->size(0) == call.rows ? call.rows : payload->size(0);
      check_direction(*h_payload, {first, payload->size(1), call.m}, call, "payload");
    }
    const Directions h{torch::stable::contiguous(h_scores), contiguous(h_steepness), contiguous(h_payload)};
    DoubleResult out{like(scores, call.result_shape()), like(scores, {call.rows, call.n}),
                     like(scores, {steepness ? call.rows : 0}),
                     payload ? like(scores, {call.rows, payload->size(1), call.m}) : like(scores, {0})};
    if (gradient.numel() > 0)
      Device::double_backward(call, torch::stable::contiguous(gradient), h, out);
    else
      for (Tensor* t : {&out.of_gradient, &out.of_scores, &out.of_steepness, &out.of_payload})
        torch::stable::zero_(*t);
    return {out.of_gradient, out.of_scores, out.of_steepness, out.of_payload};
  }

 private:
  static void check_direction(const Tensor& direction, const std::vector<int64_t>& shape, const Call& call,
                              const char* name) {
    bool same = direction.scalar_type() == call.scores.scalar_type() &&
                direction.dim() == static_cast<int64_t>(shape.size());
    for (size_t d = 0; same && d < shape.size(); ++d) same = direction.size(static_cast<int64_t>(d)) == shape[d];
    STD_TORCH_CHECK(same, "difflayers: the direction of ", name, " must have its shape and dtype");
  }
  static void check_gradient(const Call& call, const Tensor& gradient) {
    STD_TORCH_CHECK(gradient.scalar_type() == call.scores.scalar_type() &&
                        gradient.numel() == numel(call.result_shape()),
                    "difflayers: the gradient must have the shape and dtype of the result");
  }
  static int64_t numel(const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return count;
  }
};

}  // namespace difflayers
