// Included before everything in the ThreadSanitizer build: torch's parallel_for on threads that the sanitizer sees.
// OpenMP's runtime is not instrumented, so its barriers would be invisible and every worker a false report. The grain is
// left out of account, so that the smallest tensors too are shared between two threads.
#pragma once

// the inner loops know nothing of torch, and share nothing
#if __has_include(<torch/csrc/stable/ops.h>)

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <thread>

namespace torch::stable {

template <class F>
void parallel_for_on_threads(int64_t begin, int64_t end, int64_t, const F& f) {
  const int64_t middle = begin + (end - begin) / 2;
  std::exception_ptr failed;
  std::thread other;
  if (middle > begin)
    other = std::thread([&] {
      try {
        f(begin, middle);
      } catch (...) {
        failed = std::current_exception();
      }
    });
  try {
    if (end > middle) f(middle, end);
  } catch (...) {
    if (other.joinable()) other.join();
    throw;
  }
  if (other.joinable()) other.join();
  if (failed) std::rethrow_exception(failed);
}

}  // namespace torch::stable

#define parallel_for parallel_for_on_threads
#endif
