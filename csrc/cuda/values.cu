// One thread per row, all wires in registers. A warp stages its 32 rows through shared memory, so that what it
// reads and writes is contiguous.
#include "values.h"

#include <type_traits>

#include "../register_row.h"
#include "tables.h"

namespace difflayers::cuda {
namespace {

using block::Job;

// Rows of n numbers between global memory and rows of `stride` in shared memory, by one warp.
template <int N, bool to_shared>
__device__ void stage(float* shared, std::conditional_t<to_shared, const float, float>* global, int32_t n,
                      int32_t stride, int32_t rows, int32_t lane) {
  constexpr int at_once = 32 / N;
  const int32_t column = lane % N;
  if (column < n) {
#pragma unroll 4
    for (int32_t row = lane / N; row < rows; row += at_once) {
      if constexpr (to_shared)
        shared[row * stride + column] = global[row * n + column];
      else
        global[row * n + column] = shared[row * stride + column];
    }
  }
  __syncwarp();
}

template <bool backwards>
constexpr int threads_of = backwards ? 64 : 128;

// an odd distance between rows: the threads of a warp then touch different banks
__host__ __device__ constexpr int32_t row_stride(int32_t n) { return n | 1; }

template <int N, class SwapType, bool backwards>
__global__ void __launch_bounds__(threads_of<backwards>) values_kernel(const Job<float> job) {
  extern __shared__ float memory[];
  constexpr int threads = threads_of<backwards>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), lane = thread % 32;
  const int32_t n = job.n, stride = row_stride(n);
  const int64_t row = int64_t(blockIdx.x) * threads + thread, first = row - lane;
  if (first >= job.rows) return;
  const int32_t rows = job.rows - first < 32 ? static_cast<int32_t>(job.rows - first) : 32;
  float* const of_warp = memory + (thread - lane) * stride;
  float* const gradient_of_warp = of_warp + threads * stride;
  const block::ThreadTape<float> tape{memory + 2 * threads * stride + thread, threads};
  stage<N, true>(of_warp, job.scores + first * n, n, stride, rows, lane);
  if constexpr (backwards) stage<N, true>(gradient_of_warp, job.gradient + first * n, n, stride, rows, lane);
  if (lane < rows)
    block::run_in_registers<N, SwapType, backwards>(job, row, of_warp + lane * stride,
                                                    gradient_of_warp + lane * stride, tape);
  __syncwarp();
  stage<N, false>(of_warp, (backwards ? job.of_scores : job.result) + first * n, n, stride, rows, lane);
}

template <int N, class SwapType, bool backwards>
void launch(const Job<float>& job, cudaStream_t stream) {
  constexpr int threads = threads_of<backwards>;
  const size_t staging = size_t(backwards ? 2 : 1) * threads * row_stride(job.n);
  const size_t bytes = (staging + (backwards ? size_t(threads) * block::MergeNetwork<N>::count : 0)) * sizeof(float);
  const auto kernel = values_kernel<N, SwapType, backwards>;
  if (bytes > (48 << 10))
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "reserve shared memory");
  const int64_t blocks = (job.rows + threads - 1) / threads;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "difflayers: too many rows: ", job.rows);
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(job);
  check(cudaGetLastError(), "launch a sorting kernel");
}

template <bool backwards>
void run(const Job<float>& job, cudaStream_t stream) {
  block::with_size(job.n, [&](auto size) {
    block::with_short_swap(job.swap, [&](auto swap) {
      launch<decltype(size)::value, decltype(swap), backwards>(job, stream);
    });
  });
}

}  // namespace

void run_values(const Job<float>& job, bool backwards, cudaStream_t stream) {
  backwards ? run<true>(job, stream) : run<false>(job, stream);
}

}  // namespace difflayers::cuda
