// The inner loops of the k-of-n kernels, compiled once per instruction set (subsets_kernels.cpp). Plain data and
// function pointers only: nothing here may emit code.
#pragma once

#include <cstdint>

namespace difflayers::cpu {

// A row of a table holds `columns` doubles per component (a multiple of 8) after `pad` zeros and before `pad`
// zeros, so that the neighbour of the first and of the last column is 0. Components: the number, its derivative
// along g, along h, along both (1, 2 or 4 of them).
constexpr int64_t pad = 8;

struct SubsetKernels {
  // to[j] = s from[j] + r from[j - 1], in the algebra of the components.
  void (*count)(int components, const double* from, double* to, const double* r, const double* s, int64_t columns);
  // row[j] = s row[j] + r row[j + 1], in place.
  void (*count_reversed)(int components, double* row, const double* r, const double* s, int64_t columns);
  // sum_j a[j] b[j], in the algebra of the components.
  void (*dot)(int components, const double* a, const double* b, int64_t columns, double* result);
};

const SubsetKernels* subset_kernels_baseline();
const SubsetKernels* subset_kernels_avx2();
const SubsetKernels* subset_kernels_avx512();

}  // namespace difflayers::cpu
