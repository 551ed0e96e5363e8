// Comparator tables in device memory, uploaded once per network, size, outputs and device.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../block_call.h"

namespace difflayers::cuda {

inline void check(cudaError_t error, const char* action) {
  STD_TORCH_CHECK(error == cudaSuccess, "difflayers: CUDA failed to ", action, ": ", cudaGetErrorString(error));
}

// A table's memory comes from the CUDA runtime rather than from torch's allocator, which would hand it to
// another tensor while kernels on other streams still read it.
class DeviceTable {
 public:
  DeviceTable(const Program& program, int device) : device_(device) {
    STD_TORCH_CHECK(program.comparators() < (int64_t(1) << 31), "difflayers: the network is too large: ",
                    program.comparators(), " comparators");
    const auto comparators = block::interleaved(program);
    const auto layer_begin = block::layer_offsets(program);
    const size_t head = comparators.size() * sizeof(block::Comparator);
    const size_t bytes = head + layer_begin.size() * sizeof(int32_t);
    // A stream of its own, and the relaxed mode, make this right in the middle of a CUDA graph's capture too.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "change the capture mode");
    const cudaError_t error = upload(comparators, layer_begin, head, bytes);
    check(cudaThreadExchangeStreamCaptureMode(&mode), "change the capture mode");
    if (error != cudaSuccess) release();
    check(error, "upload a sorting network");
    view_ = {static_cast<const block::Comparator*>(memory_),
             reinterpret_cast<const int32_t*>(static_cast<const char*>(memory_) + head),
             static_cast<int32_t>(program.layers()), static_cast<int32_t>(program.comparators())};
  }
  ~DeviceTable() { release(); }
  DeviceTable(const DeviceTable&) = delete;
  DeviceTable& operator=(const DeviceTable&) = delete;
  const block::Table& view() const { return view_; }

 private:
  cudaError_t upload(const std::vector<block::Comparator>& comparators, const std::vector<int32_t>& layer_begin,
                     size_t head, size_t bytes) {
    cudaStream_t stream;
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return error;
    error = cudaMalloc(&memory_, bytes);
    if (error == cudaSuccess && head > 0)
      error = cudaMemcpyAsync(memory_, comparators.data(), head, cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess)
      error = cudaMemcpyAsync(static_cast<char*>(memory_) + head, layer_begin.data(), bytes - head,
                              cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    const cudaError_t destroyed = cudaStreamDestroy(stream);
    return error == cudaSuccess ? destroyed : error;
  }
  void release() {
    int previous = 0;
    if (memory_ == nullptr || cudaGetDevice(&previous) != cudaSuccess) return;
    cudaSetDevice(device_);
    // kernels may still read the table; where nothing may wait (another thread captures a graph), it is leaked
    if (cudaDeviceSynchronize() == cudaSuccess) cudaFree(memory_);
    cudaSetDevice(previous);
    memory_ = nullptr;
  }

  int device_;
  void* memory_ = nullptr;
  block::Table view_{};
};

// The table of a call; `device` is the current one. A table that a graph's capture saw is kept for good, as
// the graph may be replayed at any time; so is every table while the cache has room.
inline std::shared_ptr<const DeviceTable> table_for(const Call& call, int device, cudaStream_t stream) {
  using Key = std::tuple<std::string, int64_t, int64_t, int64_t, int>;
  struct Entry {
    std::shared_ptr<const DeviceTable> table;
    bool captured;
  };
  static auto& cache = *new std::map<Key, Entry>;  // leaked, as in networks.cpp
  static std::mutex mutex;
  static int64_t cached = 0;
  constexpr int64_t limit = 1 << 25;  // comparators; 256 MiB of tables

  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "ask about the stream");
  const bool capturing = status != cudaStreamCaptureStatusNone;
  Key key{call.network, call.n, call.first, call.last, device};
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = cache.find(key);
  if (found == cache.end()) {
    const auto source = program(call.network, call.n, call.first, call.last);
    auto made = std::make_shared<const DeviceTable>(*source, device);
    // waiting for the device is not allowed during a capture: the cache then grows beyond its limit
    if (cached + source->comparators() > limit && !capturing) {
      std::erase_if(cache, [](const auto& entry) { return !entry.second.captured; });
      cached = 0;
      for (const auto& entry : cache) cached += entry.second.table->view().count;
    }
    cached += source->comparators();
    found = cache.emplace(std::move(key), Entry{std::move(made), false}).first;
  }
  found->second.captured |= capturing;
  return found->second.table;
}

}  // namespace difflayers::cuda
