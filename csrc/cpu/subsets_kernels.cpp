// One step of the Poisson-binomial dynamic program, forwards and backwards, and the sum that joins the two; the
// only loops of the k-of-n kernels that run n k times. Compiled once per instruction set (DL_ISA names it).
//
// Numbers are truncated polynomials in two directions g and h (a number, a dual number or a hyper-dual one): the
// product's component c is the sum over the subsets u of c of a[u] b[c without u].
#include "subsets_kernels.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

using cpu::pad;

template <int components>
void count(const double* from, double* to, const double* r, const double* s, int64_t columns) {
  const int64_t plane = columns + 2 * pad;
  for (int c = 0; c < components; ++c) {
    double* __restrict__ out = to + c * plane + pad;
    const double *own = from + c * plane + pad, r0 = r[0], s0 = s[0];
    for (int64_t j = 0; j < columns; ++j) out[j] = s0 * own[j] + r0 * own[j - 1];
    for (int u = 1; u <= c; ++u) {
      if ((u & c) != u) continue;
      const double *rest = from + (c ^ u) * plane + pad, ru = r[u], su = s[u];
      for (int64_t j = 0; j < columns; ++j) out[j] += su * rest[j] + ru * rest[j - 1];
    }
  }
}

// Blocks of 8 columns keep old values in registers, so that in place is no obstacle to vectors.
template <int components>
void count_reversed(double* row, const double* r, const double* s, int64_t columns) {
  const int64_t plane = columns + 2 * pad;
  for (int c = components - 1; c >= 0; --c) {  // a component depends on those below it
    double* own = row + c * plane + pad;
    for (int64_t j = 0; j < columns; j += 8) {
      double sum[8];
      for (int l = 0; l < 8; ++l) sum[l] = s[0] * own[j + l] + r[0] * own[j + l + 1];
      for (int u = 1; u <= c; ++u) {
        if ((u & c) != u) continue;
        const double* rest = row + (c ^ u) * plane + pad + j;
        for (int l = 0; l < 8; ++l) sum[l] += s[u] * rest[l] + r[u] * rest[l + 1];
      }
      for (int l = 0; l < 8; ++l) own[j + l] = sum[l];
    }
  }
}

template <int components>
void dot(const double* a, const double* b, int64_t columns, double* result) {
  const int64_t plane = columns + 2 * pad;
  for (int c = 0; c < components; ++c) {
    double sum[8] = {};
    for (int u = 0; u <= c; ++u) {
      if ((u & c) != u) continue;
      const double *x = a + u * plane + pad, *y = b + (c ^ u) * plane + pad;
      for (int64_t j = 0; j < columns; j += 8)
        for (int l = 0; l < 8; ++l) sum[l] += x[j + l] * y[j + l];
    }
    result[c] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

void any_count(int components, const double* from, double* to, const double* r, const double* s, int64_t columns) {
  components == 1   ? count<1>(from, to, r, s, columns)
  : components == 2 ? count<2>(from, to, r, s, columns)
                    : count<4>(from, to, r, s, columns);
}

void any_count_reversed(int components, double* row, const double* r, const double* s, int64_t columns) {
  components == 1   ? count_reversed<1>(row, r, s, columns)
  : components == 2 ? count_reversed<2>(row, r, s, columns)
                    : count_reversed<4>(row, r, s, columns);
}

void any_dot(int components, const double* a, const double* b, int64_t columns, double* result) {
  components == 1   ? dot<1>(a, b, columns, result)
  : components == 2 ? dot<2>(a, b, columns, result)
                    : dot<4>(a, b, columns, result);
}

constexpr cpu::SubsetKernels set_of_subset_kernels{any_count, any_count_reversed, any_dot};

}  // namespace
}  // namespace DL_ISA

namespace cpu {
#define DL_CONCATENATE(a, b) a##b
#define DL_NAMED(a, b) DL_CONCATENATE(a, b)
const SubsetKernels* DL_NAMED(subset_kernels_, DL_ISA)() { return &set_of_subset_kernels; }
}  // namespace cpu
}  // namespace difflayers
