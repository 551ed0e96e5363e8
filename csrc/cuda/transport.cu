// The sorting family on CUDA: launches of block_row.h's algorithm, and the registrations.
//
// A team of threads takes one row at a time: a part of a warp for short rows of a large batch, else a block.
// The grid holds as many teams as run at once and strides over the rows, so that scratch is per team and not
// per row. A row's wires lie in shared memory where they fit.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../block_call.h"
#include "../block_row.h"
#include "../register_row.h"
#include "tables.h"
#include "values.h"

// weak, so that the library loads into a torch without CUDA
#pragma weak aoti_torch_get_current_cuda_stream

namespace difflayers::cuda {
namespace {

using block::Job;

struct DeviceTeam {
  int32_t lane, count;
  bool whole_block;
  uint32_t mask;  // of the warp's threads, where the team is not the block

  __device__ int32_t lanes() const { return count; }
  template <class Index, class F>
  __device__ void each(Index total, F f) const {
    for (Index i = lane; i < total; i += count) f(i, lane);
    if (whole_block)
      __syncthreads();
    else
      __syncwarp(mask);
  }
  template <class F>
  __device__ bool any(int32_t total, F f) const {
    bool found = false;
    for (int32_t i = lane; i < total; i += count) found |= f(i);
    return whole_block ? __syncthreads_or(found) != 0 : __any_sync(mask, found) != 0;
  }
};

struct Geometry {
  int32_t lanes;      // of one team
  size_t fast, slow;  // bytes per team
  char* scratch;
};

// Threads in a block at most: 64 registers for the forward pass of floats, 128 for what needs more.
template <class Num, bool backwards>
constexpr int most_threads = sizeof(Num) == 4 && !backwards ? 1024 : 512;

template <class Num, bool backwards, class T>
__global__ void __launch_bounds__(most_threads<Num, backwards>) rows_kernel(const Job<T> job, const Geometry teams) {
  extern __shared__ __align__(16) char shared[];
  const int32_t thread = static_cast<int32_t>(threadIdx.x), in_block = static_cast<int32_t>(blockDim.x) / teams.lanes;
  const int32_t team_in_block = thread / teams.lanes, lane = thread % teams.lanes;
  const int64_t team_number = int64_t(blockIdx.x) * in_block + team_in_block;
  const bool whole_block = in_block == 1;
  const uint32_t all = teams.lanes >= 32 ? 0xffffffffu : (1u << teams.lanes) - 1;
  const DeviceTeam team{lane, teams.lanes, whole_block, all << ((thread - lane) % 32)};
  block::Arena arena{shared + team_in_block * teams.fast, teams.scratch + team_number * teams.slow};
  block::Memory<Num> memory;
  memory.place(job, teams.lanes, arena);
  for (int64_t row = team_number; row < job.rows; row += int64_t(gridDim.x) * in_block)
    block::run_row<Num, backwards>(job, memory, team, row);
}

struct Properties {
  int processors = 0, shared = 0;  // shared memory that a block may ask for
};

Properties properties_of(int device) {
  Properties p;
  check(cudaDeviceGetAttribute(&p.processors, cudaDevAttrMultiProcessorCount, device), "read device attributes");
  check(cudaDeviceGetAttribute(&p.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "read device attributes");
  return p;
}

cudaStream_t current_stream(int device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "difflayers: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

struct Shape {
  int32_t lanes, threads;
};

Shape shape_of(const Call& call, const Properties& properties, int32_t most) {
  const int64_t pairs = std::max<int64_t>(call.n / 2, 1);  // at most so many comparators in a layer
  if (call.n <= 256 && call.rows >= 4 * properties.processors) {
    int32_t lanes = 1;
    while (lanes < 32 && lanes < pairs) lanes *= 2;
    return {lanes, 128};
  }
  const int32_t threads = static_cast<int32_t>(std::min<int64_t>((pairs + 31) / 32 * 32, most));
  return {threads, threads};
}

constexpr size_t slow_limit = size_t(64) << 20;   // per block, where narrower tiles can keep it
constexpr size_t total_limit = size_t(1) << 30;   // scratch of a call, unless one block alone needs more

struct Launcher {
  template <class Num, bool backwards, class T>
  static void run(const Call& call, Job<T>& job) {
    const int device = call.scores.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(cudaSetDevice(device), "select the device");  // for our own copy of the runtime
    const cudaStream_t stream = current_stream(device);
    const Properties properties = properties_of(device);
    if constexpr (std::is_same_v<Num, float>)
      // a thread per row, where they are enough to fill the device
      if (block::fits_registers(job, call.network == "odd_even_merge") && call.rows >= 32 * properties.processors)
        return run_values(job, backwards, stream);

    const auto table = table_for(call, device, stream);
    job.table = table->view();
    const Shape shape = shape_of(call, properties, most_threads<Num, backwards>);
    const int32_t in_block = shape.threads / shape.lanes;
    const size_t shared = static_cast<size_t>(properties.shared) / in_block / 16 * 16;
    // leaves room for 1024 threads on a multiprocessor
    const size_t comfortable = shared * std::min(shape.threads, 1024) / 1024;
    job.limits = {shared, comfortable};
    block::choose_tile<Num>(job, shape.lanes, comfortable, slow_limit / in_block);
    const block::Arena needed = block::measure<Num>(job, shape.lanes);

    const auto kernel = rows_kernel<Num, backwards, T>;
    const size_t dynamic = needed.fast_used * in_block;
    if (dynamic > (48 << 10))
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(dynamic)),
            "reserve shared memory");
    int per_processor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, shape.threads, dynamic),
          "compute the occupancy");
    int64_t blocks = std::min<int64_t>((call.rows + in_block - 1) / in_block,
                                       int64_t(properties.processors) * std::max(per_processor, 1));
    const size_t slow = needed.slow_used * in_block;
    if (slow > 0) blocks = std::min<int64_t>(blocks, std::max<int64_t>(static_cast<int64_t>(total_limit / slow), 1));
    Tensor scratch = torch::stable::new_empty(call.scores, {static_cast<int64_t>(slow) * blocks},
                                              torch::headeronly::ScalarType::Byte);
    const Geometry teams{shape.lanes, needed.fast_used, needed.slow_used, data<char>(scratch)};
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(shape.threads), dynamic, stream>>>(job, teams);
    check(cudaGetLastError(), "launch a sorting kernel");
  }
};

}  // namespace
}  // namespace difflayers::cuda

STABLE_TORCH_LIBRARY_IMPL(difflayers, CUDA, library) {
  using Operators = difflayers::TransportOperators<difflayers::block::Teams<difflayers::cuda::Launcher>>;
  library.impl("transport", TORCH_BOX(&Operators::forward));
  library.impl("transport_backward", TORCH_BOX(&Operators::backward));
  library.impl("transport_double_backward", TORCH_BOX(&Operators::double_backward));
}
