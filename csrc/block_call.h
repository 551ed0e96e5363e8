// From the operators' tensors (transport.h) to a job for teams of threads (block.h), for CUDA and the emulation.
#pragma once

#include <cstdint>
#include <vector>

#include "block.h"
#include "networks.h"
#include "transport.h"

namespace difflayers::block {

inline std::vector<Comparator> interleaved(const Program& program) {
  std::vector<Comparator> comparators(program.lower.size());
  for (size_t k = 0; k < comparators.size(); ++k) comparators[k] = {program.lower[k], program.upper[k]};
  return comparators;
}

inline std::vector<int32_t> layer_offsets(const Program& program) {
  return {program.layer_begin.begin(), program.layer_begin.end()};
}

template <class T>
Job<T> job_of(const Call& call, Pass pass) {
  STD_TORCH_CHECK(call.n < (int64_t(1) << 26), "difflayers: too many elements in a row: ", call.n);
  Job<T> job{};
  job.what = static_cast<What>(call.what);
  job.pass = pass;
  job.swap = call.swap;
  job.n = static_cast<int32_t>(call.n);
  job.first = static_cast<int32_t>(call.first);
  job.last = static_cast<int32_t>(call.last);
  job.hard = call.hard;
  job.parameter = static_cast<T>(call.parameter);
  job.constant = static_cast<T>(call.constant);
  job.rows = call.rows;
  job.m = call.m;
  job.tile = 1;
  job.scores = data<T>(call.scores);
  if (call.steepness) job.steepness = data<T>(*call.steepness);
  if (call.payload) {
    job.payload = data<T>(*call.payload);
    job.payload_stride = call.payload->size(0) == 1 ? 0 : call.payload->size(1) * call.m;
  }
  return job;
}

template <class T>
T* data_unless_empty(const Tensor& tensor) {
  return tensor.numel() > 0 ? data<T>(tensor) : nullptr;
}

// What TransportOperators asks of a device. Launcher::run<Num, backwards>(call, job) fills in the job's table
// and memory and runs it on every row.
template <class Launcher>
struct Teams {
  static void forward(const Call& call, Tensor& result) {
    call.is_double ? forward_in<double>(call, result) : forward_in<float>(call, result);
  }
  static void backward(const Call& call, const Tensor& gradient, Tensor& of_scores, Tensor& of_steepness,
                       Tensor& of_payload) {
    call.is_double ? backward_in<double>(call, gradient, of_scores, of_steepness, of_payload)
                   : backward_in<float>(call, gradient, of_scores, of_steepness, of_payload);
  }
  static void double_backward(const Call& call, const Tensor& gradient, const Directions& h, DoubleResult& out) {
    call.is_double ? double_backward_in<double>(call, gradient, h, out)
                   : double_backward_in<float>(call, gradient, h, out);
  }

 private:
  template <class T>
  static void forward_in(const Call& call, Tensor& result) {
    Job<T> job = job_of<T>(call, Pass::forward);
    job.result = data<T>(result);
    Launcher::template run<T, false>(call, job);
  }
  template <class T>
  static void backward_in(const Call& call, const Tensor& gradient, Tensor& of_scores, Tensor& of_steepness,
                          Tensor& of_payload) {
    Job<T> job = job_of<T>(call, Pass::gradient);
    job.gradient = data<T>(gradient);
    job.of_scores = data<T>(of_scores);
    job.of_steepness = data_unless_empty<T>(of_steepness);
    job.of_payload = data_unless_empty<T>(of_payload);
    Launcher::template run<T, true>(call, job);
  }
  template <class T>
  static void double_backward_in(const Call& call, const Tensor& gradient, const Directions& h, DoubleResult& out) {
    Job<T> job = job_of<T>(call, Pass::curvature);
    job.gradient = data<T>(gradient);
    job.h_scores = data<T>(h.scores);
    if (h.steepness) job.h_steepness = data<T>(*h.steepness);
    if (h.payload) {
      job.h_payload = data<T>(*h.payload);
      job.h_payload_stride = h.payload->size(0) == 1 ? 0 : h.payload->size(1) * call.m;
    }
    job.result = data<T>(out.of_gradient);
    job.of_scores = data<T>(out.of_scores);
    job.of_steepness = data_unless_empty<T>(out.of_steepness);
    job.of_payload = data_unless_empty<T>(out.of_payload);
    Launcher::template run<Dual<T>, true>(call, job);
  }
};

}  // namespace difflayers::block
