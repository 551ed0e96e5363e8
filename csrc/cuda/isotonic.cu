// Projections onto the permutahedron on CUDA: torch sorts the rows, then one thread takes a row.
//
// Pool-adjacent-violators is sequential, so a batch of many rows is what fills the device; a single long row is slow.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdint>

#include "../permutahedron.h"

// weak, so that the library loads into a torch without CUDA
#pragma weak aoti_torch_get_current_cuda_stream

namespace difflayers::permutahedron {
namespace {

void check(cudaError_t error, const char* action) {
  STD_TORCH_CHECK(error == cudaSuccess, "difflayers: CUDA failed to ", action, ": ", cudaGetErrorString(error));
}

constexpr unsigned threads = 64;  // few, so that small batches spread over the processors

template <Task task, bool entropic, class T>
__global__ void __launch_bounds__(threads)
    project_kernel(const Job<T> job, const T* sorted, const int64_t* indices, double* sums) {
  const int64_t row = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (row >= job.rows) return;
  const int64_t at = row * job.n;
  for (int32_t i = 0; i < job.n; ++i) job.order[at + i] = static_cast<int32_t>(indices[at + i]);
  const isotonic::Row<task, entropic, T> one{sorted + at, job.n, job.k, job.temperature_of(row)};
  one.project(job.order + at, sums + at, job.starts + at, job.result + at);
}

template <Task task, bool entropic, class T>
__global__ void __launch_bounds__(threads) differentiate_kernel(const Job<T> job) {
  const int64_t row = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (row < job.rows) differentiate_row<task, entropic>(job, row);
}

struct Cuda {
  // Calls f with the number of blocks and the stream, on the device of x.
  template <class F>
  static void launch(const Tensor& x, int64_t rows, F f) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "difflayers: this torch has no CUDA");
    const int device = x.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(cudaSetDevice(device), "select the device");  // for our own copy of the runtime
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const int64_t blocks = (rows + threads - 1) / threads;
    STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "difflayers: too many rows: ", rows);
    f(static_cast<unsigned>(blocks), static_cast<cudaStream_t>(stream));
    check(cudaGetLastError(), "launch a projection kernel");
  }

  template <Task task, bool entropic, class T>
  static void forward(const Tensor& x, const Job<T>& job) {
    // values, indices = torch.sort(x, stable=True, dim=1, descending=...)
    std::array<StableIValue, 4> stack{torch::stable::detail::from(x),
                                      torch::stable::detail::from(std::optional<bool>(true)),
                                      torch::stable::detail::from(int64_t(1)),
                                      torch::stable::detail::from(task != Task::sort)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
    const Tensor sorted = contiguous(torch::stable::detail::to<Tensor>(stack[0]));
    const Tensor indices = contiguous(torch::stable::detail::to<Tensor>(stack[1]));
    const Tensor sums = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Double);
    launch(x, job.rows, [&](unsigned blocks, cudaStream_t stream) {
      project_kernel<task, entropic, T>
          <<<blocks, threads, 0, stream>>>(job, data<T>(sorted), data<int64_t>(indices), data<double>(sums));
    });
  }

  template <Task task, bool entropic, class T>
  static void backward(const Tensor& x, const Job<T>& job) {
    launch(x, job.rows, [&](unsigned blocks, cudaStream_t stream) {
      differentiate_kernel<task, entropic, T><<<blocks, threads, 0, stream>>>(job);
    });
  }
};

}  // namespace
}  // namespace difflayers::permutahedron

STABLE_TORCH_LIBRARY_IMPL(difflayers, CUDA, library) {
  using Operators = difflayers::permutahedron::Operators<difflayers::permutahedron::Cuda>;
  library.impl("permutahedron", TORCH_BOX(&Operators::forward));
  library.impl("permutahedron_backward", TORCH_BOX(&Operators::backward));
}
