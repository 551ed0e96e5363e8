// Exactly k of n on the CPU: marginals of the conditional Bernoulli distribution with their derivatives, exact
// samples, the normalising constant.
//
// P(z) is proportional to exp(theta . z) on the z in {0, 1}^n that sum to k. Adding a constant to theta changes
// nothing, so theta is shifted by lambda with sum_i sigmoid(theta_i - lambda) near k, and the dynamic program of the
// Poisson binomial distribution runs on the probabilities: every term is positive, the count k is near the most
// likely one (P >= about 1 / (n + 1)), and no exponential or logarithm is left in the inner loop. Numbers are double
// whatever the dtype. The rarer of "in" and "out" is counted, so tables have min(k, n - k + 1) columns.
// Scratch of one thread: O(k sqrt(n)); prefix tables are kept every sqrt(n) elements and made again in between.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "instruction_set.h"
#include "subsets_kernels.h"

namespace difflayers::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

double sigmoid(double x) {
  const double e = std::exp(-std::abs(x));
  return (x < 0 ? e : 1.0) / (1.0 + e);
}

// lambda with sum_i sigmoid(theta_i - lambda) within one standard deviation (of the count) of k; 0 < k < n. The law is
// the same whatever lambda is, so nearness is all that is needed.
double threshold(const double* theta, double* work, int64_t n, int64_t k) {
  std::copy(theta, theta + n, work);
  std::nth_element(work, work + (n - k), work + n);
  const double inside = work[n - k];  // the k-th largest
  const double outside = *std::max_element(work, work + (n - k));
  double low = outside - std::log(double(k)), high = inside + std::log(double(n - k));
  double lambda = 0.5 * inside + 0.5 * outside;
  if (inside - outside > 200) return lambda;  // nothing to balance: every probability is 0 or 1 to rounding
  for (int iteration = 0; iteration < 50; ++iteration) {
    double excess = -double(k), slope = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double p = sigmoid(theta[i] - lambda);
      excess += p;
      slope += p * (1 - p);
    }
    if (std::abs(excess) <= 0.25 || excess * excess <= slope) break;
    (excess > 0 ? low : high) = lambda;
    lambda += excess / slope;
    if (!(lambda > low && lambda < high)) lambda = 0.5 * low + 0.5 * high;
  }
  return lambda;
}

// One row's probabilities and table geometry.
struct Row {
  const SubsetKernels& kernels;
  const int64_t n, k;
  const bool few;  // whether "in" is the rarer event, which is counted
  int components;
  std::vector<double> theta, work, in, out;  // in, out: components per element
  double lambda = 0;

  Row(int64_t n, int64_t k, int components)
      : kernels(*instruction_set().subsets), n(n), k(k), few(k <= n - k), components(components), theta(n), work(n),
        in(n * components), out(n * components) {}

  const double* counted(int64_t i) const { return (few ? in : out).data() + i * components; }
  const double* other(int64_t i) const { return (few ? out : in).data() + i * components; }

  // False when an element is not finite.
  template <class T>
  bool read(const T* source) {
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) {
      theta[i] = source[i];
      finite &= std::isfinite(theta[i]);
    }
    if (!finite) return false;
    lambda = threshold(theta.data(), work.data(), n, k);
    for (int64_t i = 0; i < n; ++i) {
      const double d = theta[i] - lambda, e = std::exp(-std::abs(d)), larger = 1 / (1 + e);
      in[i * components] = d < 0 ? e * larger : larger;
      out[i * components] = d < 0 ? larger : e * larger;
    }
    return true;
  }

  // The derivatives of the probabilities along g (and h), lambda being a constant. A direction that is the same
  // for every element changes nothing, so its mean is taken out: smaller numbers that cancel.
  template <class T>
  void differentiate(const T* g, const T* h) {
    const double g_mean = mean(g), h_mean = h ? mean(h) : 0;
    for (int64_t i = 0; i < n; ++i) {
      double *p = &in[i * components], *q = &out[i * components];
      const double first = p[0] * q[0], along_g = g[i] - g_mean;
      p[1] = first * along_g;
      q[1] = -p[1];
      if (h == nullptr) continue;
      const double along_h = h[i] - h_mean;
      p[2] = first * along_h;
      q[2] = -p[2];
      p[3] = first * (q[0] - p[0]) * along_g * along_h;
      q[3] = -p[3];
    }
  }

 private:
  template <class T>
  double mean(const T* direction) const {
    double weights = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double weight = in[i * components] * out[i * components];
      weights += weight;
      sum += weight * direction[i];
    }
    return weights > 0 && std::isfinite(sum / weights) ? sum / weights : 0;
  }
};

// Prefix tables of the counted events: row(i) is the distribution of the count among the elements before i.
class Prefixes {
 public:
  Prefixes(int64_t n, int64_t counts, int components)
      : columns_((counts + 7) / 8 * 8), size_((columns_ + 2 * pad) * components) {
    const int64_t all = int64_t(1) << 16;  // doubles: as much as stays in cache is kept whole
    block_ = n * size_ <= all ? n : std::max<int64_t>(1, int64_t(std::sqrt(double(n))));
    blocks_ = (n + block_ - 1) / block_;
    saved_.assign(blocks_ * size_, 0.0);
    rows_.assign((block_ + 1) * size_, 0.0);
    saved_[pad] = 1.0;
  }
  int64_t columns() const { return columns_; }
  int64_t size() const { return size_; }
  int64_t blocks() const { return blocks_; }

  // Before the first block(b) of a row of logits.
  void start(const Row& row) {
    for (int64_t b = 0; b + 1 < blocks_; ++b) {
      make(row, b);
      std::copy_n(rows_.data() + block_ * size_, size_, saved_.data() + (b + 1) * size_);
    }
  }
  // Calls visit(i, row(i)) for the elements of block b, last first.
  template <class Visit>
  void backwards(const Row& row, int64_t b, Visit visit) {
    make(row, b);
    for (int64_t i = std::min(row.n, (b + 1) * block_) - 1; i >= b * block_; --i)
      visit(i, rows_.data() + (i - b * block_) * size_);
  }
  // The distribution over all elements; only right after make of the last block.
  const double* total(const Row& row) {
    make(row, blocks_ - 1);
    return rows_.data() + (row.n - (blocks_ - 1) * block_) * size_;
  }

 private:
  void make(const Row& row, int64_t b) {
    std::copy_n(saved_.data() + b * size_, size_, rows_.data());
    const int64_t begin = b * block_, end = std::min(row.n, begin + block_);
    for (int64_t i = begin; i < end; ++i)
      row.kernels.count(row.components, rows_.data() + (i - begin) * size_, rows_.data() + (i - begin + 1) * size_,
                        row.counted(i), row.other(i), columns_);
  }
  int64_t columns_, size_, block_, blocks_;
  std::vector<double> saved_, rows_;
};

template <class T>
void fill_nan(T* to, int64_t n) {
  std::fill_n(to, n, std::numeric_limits<T>::quiet_NaN());
}

// Marginals, or their derivative along g, or along g and h.
template <class T>
void marginals_of_rows(const T* theta, const T* g, const T* h, T* result, int64_t begin, int64_t end, int64_t n,
                       int64_t k) {
  const int components = g == nullptr ? 1 : h == nullptr ? 2 : 4;
  Row row(n, k, components);
  // P(i in) = in_i P(of the others, k - 1 are in, that is n - k are out) / P(k are in)
  const int64_t wanted = row.few ? k - 1 : n - k;
  Prefixes prefixes(n, wanted + 1, components);
  std::vector<double> suffix(prefixes.size()), shares(n * components);
  for (int64_t b = begin; b < end; ++b, theta += n, result += n) {
    const bool finite = row.read(theta);
    if (g != nullptr && finite) row.differentiate(g, h);
    if (g != nullptr) g += n;
    if (h != nullptr) h += n;
    if (!finite) {
      fill_nan(result, n);
      continue;
    }
    std::fill(suffix.begin(), suffix.end(), 0.0);
    suffix[pad + wanted] = 1.0;  // of the elements after i, how likely the count is that makes up `wanted`
    double total[4] = {};
    prefixes.start(row);
    for (int64_t block = prefixes.blocks() - 1; block >= 0; --block)
      prefixes.backwards(row, block, [&](int64_t i, const double* prefix) {
        double joint[4];
        row.kernels.dot(components, prefix, suffix.data(), prefixes.columns(), joint);
        const double* p = &row.in[i * components];
        double* share = &shares[i * components];
        for (int c = 0; c < components; ++c) {
          share[c] = 0;
          for (int u = 0; u <= c; ++u)
            if ((u & c) == u) share[c] += p[u] * joint[c ^ u];
          total[c] += share[c];
        }
        row.kernels.count_reversed(components, suffix.data(), row.counted(i), row.other(i), prefixes.columns());
      });
    const double scale = double(k) / total[0];  // the shares sum to k P(k are in)
    const double rate_g = total[1] / total[0], rate_h = total[2] / total[0], rate = total[3] / total[0];
    for (int64_t i = 0; i < n; ++i) {
      const double* share = &shares[i * components];
      const double value = share[0] * scale;
      if (components == 1) {
        result[i] = static_cast<T>(value);
        continue;
      }
      const double along_g = share[1] * scale - value * rate_g;
      if (components == 2) {
        result[i] = static_cast<T>(along_g);
        continue;
      }
      const double along_h = share[2] * scale - value * rate_h;
      result[i] = static_cast<T>(share[3] * scale - value * rate - along_g * rate_h - along_h * rate_g);
    }
  }
}

// Exact samples: from the last element to the first, each is in with its probability given how many remain.
template <class T>
void samples_of_rows(const T* theta, const double* uniform, T* result, int64_t begin, int64_t end, int64_t n,
                     int64_t k, int64_t samples) {
  Row row(n, k, 1);
  const int64_t wanted = row.few ? k : n - k;
  Prefixes prefixes(n, wanted + 1, 1);
  std::vector<int64_t> remaining(samples);
  for (int64_t b = begin; b < end; ++b, theta += n, uniform += samples * n, result += samples * n) {
    if (!row.read(theta)) {
      fill_nan(result, samples * n);
      continue;
    }
    std::fill(remaining.begin(), remaining.end(), wanted);
    prefixes.start(row);
    for (int64_t block = prefixes.blocks() - 1; block >= 0; --block)
      prefixes.backwards(row, block, [&](int64_t i, const double* prefix) {
        const double event = *row.counted(i), rest = *row.other(i);
        for (int64_t s = 0; s < samples; ++s) {
          const int64_t left = remaining[s];
          const double with = event * prefix[pad + left - 1], without = rest * prefix[pad + left];
          // the ends are certain, whatever rounding says
          const bool happens = left > 0 && (left == i + 1 || uniform[s * n + i] * (with + without) < with);
          remaining[s] = left - happens;
          result[s * n + i] = static_cast<T>(happens == row.few);
        }
      });
  }
}

// log sum over the subsets of k of exp(sum of their theta).
template <class T>
void log_normalizer_of_rows(const T* theta, T* result, int64_t begin, int64_t end, int64_t n, int64_t k) {
  Row row(n, k, 1);
  const int64_t wanted = row.few ? k : n - k;
  Prefixes prefixes(n, wanted + 1, 1);
  for (int64_t b = begin; b < end; ++b, theta += n) {
    if (!row.read(theta)) {
      fill_nan(result + b - begin, 1);
      continue;
    }
    prefixes.start(row);
    double sum = std::log(prefixes.total(row)[pad + wanted]) + double(k) * row.lambda;
    for (int64_t i = 0; i < n; ++i) {
      const double d = row.theta[i] - row.lambda;  // -log of the probability of being out
      sum += std::max(d, 0.0) + std::log1p(std::exp(-std::abs(d)));
    }
    result[b - begin] = static_cast<T>(sum);
  }
}

// --- operators ---------------------------------------------------------------------------------------------

void check(const Tensor& theta, int64_t k) {
  STD_TORCH_CHECK(theta.scalar_type() == ScalarType::Float || theta.scalar_type() == ScalarType::Double,
                  "difflayers: theta must be float32 or float64");
  STD_TORCH_CHECK(theta.dim() == 2, "difflayers: theta must be [B, n]");
  STD_TORCH_CHECK(0 < k && k < theta.size(1), "difflayers: k must be in (0, n)");
}

std::optional<Tensor> direction(const Tensor& theta, const std::optional<Tensor>& along) {
  if (!along) return std::nullopt;
  STD_TORCH_CHECK(along->scalar_type() == theta.scalar_type() && along->dim() == 2 &&
                      along->size(0) == theta.size(0) && along->size(1) == theta.size(1),
                  "difflayers: a direction must have the shape and dtype of theta");
  return torch::stable::contiguous(*along);
}

// Rows over threads; less than about 200 us of work stays on one.
template <class F>
void over_rows(int64_t rows, int64_t n, int64_t columns, int64_t passes, F f) {
  const double nanoseconds = double(n) * (60 + double(columns) * double(passes) / 2);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, int64_t(200000 / nanoseconds)), f);
}

Tensor marginals(Tensor theta, std::optional<Tensor> g, std::optional<Tensor> h, int64_t k) {
  check(theta, k);
  STD_TORCH_CHECK(g.has_value() || !h.has_value(), "difflayers: h needs g");
  theta = torch::stable::contiguous(theta);
  g = direction(theta, g);
  h = direction(theta, h);
  Tensor result = torch::stable::new_empty(theta, {theta.size(0), theta.size(1)});
  const int64_t rows = theta.size(0), n = theta.size(1);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(theta.data_ptr());
    const T* along_g = g ? static_cast<const T*>(g->data_ptr()) : nullptr;
    const T* along_h = h ? static_cast<const T*>(h->data_ptr()) : nullptr;
    T* to = static_cast<T*>(result.data_ptr());
    over_rows(rows, n, std::min(k, n - k + 1), g ? h ? 27 : 9 : 3, [=](int64_t begin, int64_t end) {
      marginals_of_rows<T>(from + begin * n, along_g ? along_g + begin * n : nullptr,
                           along_h ? along_h + begin * n : nullptr, to + begin * n, begin, end, n, k);
    });
  };
  theta.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return result;
}

Tensor sample(Tensor theta, Tensor uniform, int64_t k) {
  check(theta, k);
  const int64_t rows = theta.size(0), n = theta.size(1);
  STD_TORCH_CHECK(uniform.scalar_type() == ScalarType::Double && uniform.dim() == 3 && uniform.size(0) == rows &&
                      uniform.size(2) == n,
                  "difflayers: uniform must be float64 [B, samples, n]");
  theta = torch::stable::contiguous(theta);
  uniform = torch::stable::contiguous(uniform);
  const int64_t samples = uniform.size(1);
  Tensor result = torch::stable::new_empty(theta, {rows, samples, n});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(theta.data_ptr());
    const double* noise = static_cast<const double*>(uniform.data_ptr());
    T* to = static_cast<T*>(result.data_ptr());
    over_rows(rows, n, std::min(k, n - k) + 1 + 8 * samples, 1, [=](int64_t begin, int64_t end) {
      const int64_t at = begin * samples * n;
      samples_of_rows<T>(from + begin * n, noise + at, to + at, begin, end, n, k, samples);
    });
  };
  theta.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return result;
}

Tensor log_normalizer(Tensor theta, int64_t k) {
  check(theta, k);
  theta = torch::stable::contiguous(theta);
  const int64_t rows = theta.size(0), n = theta.size(1);
  Tensor result = torch::stable::new_empty(theta, {rows});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(theta.data_ptr());
    T* to = static_cast<T*>(result.data_ptr());
    over_rows(rows, n, std::min(k, n - k) + 1, 1, [=](int64_t begin, int64_t end) {
      log_normalizer_of_rows<T>(from + begin * n, to + begin, begin, end, n, k);
    });
  };
  theta.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return result;
}

}  // namespace
}  // namespace difflayers::cpu

STABLE_TORCH_LIBRARY_IMPL(difflayers, CPU, library) {
  library.impl("subset_marginals", TORCH_BOX(&difflayers::cpu::marginals));
  library.impl("subset_sample", TORCH_BOX(&difflayers::cpu::sample));
  library.impl("subset_log_normalizer", TORCH_BOX(&difflayers::cpu::log_normalizer));
}
