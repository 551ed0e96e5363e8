// What choice.cpp and choice_kernels.cpp (compiled once per instruction set) share. Plain data and function pointers
// only: nothing here may emit code.
#pragma once

#include <cstdint>

namespace difflayers::cpu {

// Rows of n floats. The temperature of row r is temperature[r], or `constant` where that is null.
struct ChoiceJob {
  int64_t n;
  const float* temperature;
  float constant;
  const float* logits;     // in the backward passes of a choice the marked ones
  const int32_t* bits;     // Gumbel-Softmax: 31 random bits an element
  const double* uniform;   // a choice: one number a row, in [0, 1)
  const float* gradient;   // of the loss by the result
  const float* soft;       // Gumbel-Softmax: what the forward pass returned
  float* result;           // soft or marked logits; in the backward passes the gradient by the logits
  float* sample;           // one-hot, or null where it is not wanted
};

struct ChoiceKernels {
  // Each works on rows [begin, end).
  using Kernel = void (*)(const ChoiceJob&, int64_t begin, int64_t end);
  Kernel gumbel_softmax, gumbel_softmax_backward, choose, straight_through_backward, reinmax_backward;
};

const ChoiceKernels* choice_kernels_baseline();
const ChoiceKernels* choice_kernels_avx2();
const ChoiceKernels* choice_kernels_avx512();

}  // namespace difflayers::cpu
