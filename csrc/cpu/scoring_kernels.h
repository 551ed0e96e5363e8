// What scoring.cpp and scoring_kernels.cpp (compiled once per instruction set) share. Plain data and function pointers
// only: nothing here may emit code.
#pragma once

#include <cstdint>

namespace difflayers::cpu {

// B problems of H models each; a flat index of a model is problem * H + h. Numbers are float or double throughout
// (`void*`), except where said.
struct ScoringJob {
  int64_t hypotheses;
  int64_t stride;           // between the rows of coordinates, a multiple of every pack's size
  const void* models;       // [B, H, parameters]
  const void* coordinates;  // [B, d, stride]: the present points of each problem first, then NaN
  const int64_t* counts;    // [B] present points
  const bool* valid;        // [B, H], or null: all are
  const double* scale;      // [B]
  const double* at_least;   // [B], or null
  double parameter;
  void* result;             // [B, H]
  const void* gradient;     // backward: [B, H]
  void* of_models;          // backward: [B, H, parameters], set
  double* of_scale;         // backward: [B, H], set
};

struct ScoringKernels {
  // Scores of models [begin, end).
  using Forward = void (*)(const ScoringJob&, int64_t begin, int64_t end);
  // Models [begin, end) of one problem; adds to of_points [d, stride].
  using Backward = void (*)(const ScoringJob&, int64_t begin, int64_t end, void* of_points);
  static constexpr int residuals = 9, scores = 4;
  // first index 0 for float, 1 for double; null where the gradient is zero
  Forward forward[2][residuals][scores];
  Backward backward[2][residuals][scores];
};

const ScoringKernels* scoring_kernels_baseline();
const ScoringKernels* scoring_kernels_avx2();
const ScoringKernels* scoring_kernels_avx512();

}  // namespace difflayers::cpu
