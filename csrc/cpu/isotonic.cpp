// Projections onto the permutahedron on the CPU: a row at a time, rows over threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>

#include "../permutahedron.h"
#include "argsort.h"

namespace difflayers::cpu {
namespace {

using permutahedron::Job;
using permutahedron::Task;
using torch::stable::Tensor;

// About 30 ns for an element, twice that with exponentials; 200 us are worth a thread.
template <bool entropic, class F>
void over_rows(int64_t rows, int64_t n, F f) {
  const int64_t cost = (entropic ? 60 : 30) * n;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 200000 / cost), f);
}

struct Cpu {
  template <Task task, bool entropic, class T>
  static void forward(const Tensor&, const Job<T>& job) {
    const int64_t n = job.n;
    over_rows<entropic>(job.rows, n, [&](int64_t begin, int64_t end) {
      // not initialised: std::vector would be
      const std::unique_ptr<SortItem<T>[]> items(new SortItem<T>[2 * n]);
      const std::unique_ptr<double[]> sums(new double[n]);
      const std::unique_ptr<T[]> sorted(new T[n]);
      for (int64_t row = begin; row < end; ++row) {
        const T* const x = job.x + row * n;
        int32_t* const order = job.order + row * n;
        argsort(x, job.n, task != Task::sort, order, items.get());
        for (int64_t i = 0; i < n; ++i) sorted[i] = x[order[i]];
        const isotonic::Row<task, entropic, T> one{sorted.get(), job.n, job.k, job.temperature_of(row)};
        one.project(order, sums.get(), job.starts + row * n, job.result + row * n);
      }
    });
  }

  template <Task task, bool entropic, class T>
  static void backward(const Tensor&, const Job<T>& job) {
    bool inside = true;
    for (int64_t i = 0; i < job.rows * job.n; ++i) inside &= 0 <= job.order[i] && job.order[i] < job.n;
    STD_TORCH_CHECK(inside, "difflayers: order must hold indices into the rows");
    over_rows<entropic>(job.rows, job.n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) permutahedron::differentiate_row<task, entropic>(job, row);
    });
  }
};

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  using Operators = difflayers::permutahedron::Operators<difflayers::cpu::Cpu>;
  library.impl("permutahedron", TORCH_BOX(&Operators::forward));
  library.impl("permutahedron_backward", TORCH_BOX(&Operators::backward));
}
