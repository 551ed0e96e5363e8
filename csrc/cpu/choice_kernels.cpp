// Gumbel-Softmax, straight-through and ReinMax on rows of floats, compiled once per instruction set (DL_ISA names it).
//
// A row is walked in packs, three times at most, while it is in cache; the results double as scratch. See
// difflayers/estimators/reference.py for what these compute. No inline function of the standard library may be
// used here: the linker would merge the copies of the different instruction sets.
#include "choice_kernels.h"
#include "pack.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

using P = Pack<float>;
using Integers = Vectors<float>::Integer;
constexpr int64_t width = P::size;
constexpr float infinity = __builtin_inff();

DL_HD P at_least(P a, P b) { return select(a < b, b, a); }

// Elements [i, i + width) of a row of n; what lies beyond the end is `fill`.
DL_HD P take(const float* row, int64_t i, int64_t n, float fill) {
  if (i + width <= n) return P::load(row + i);
  P p(fill);
  __builtin_memcpy(&p.v, row + i, static_cast<size_t>(n - i) * sizeof(float));
  return p;
}
DL_HD void put(float* row, int64_t i, int64_t n, P p) {
  if (i + width <= n) return p.store(row + i);
  __builtin_memcpy(row + i, &p.v, static_cast<size_t>(n - i) * sizeof(float));
}

DL_HD float largest_of(P p) {
  float best = p.v[0];
  for (int i = 1; i < width; ++i) best = best < p.v[i] ? p.v[i] : best;
  return best;
}

DL_HD float largest_of(const float* row, int64_t n) {
  P best(-infinity);
  for (int64_t i = 0; i < n; i += width) best = at_least(best, take(row, i, n, -infinity));
  return largest_of(best);
}

// exp((x - largest) * scale), 0 where x is -inf
DL_HD P weight(P x, P largest, P scale) { return math::exp_of_minus((largest - x) * scale); }

DL_HD float temperature_of(const cpu::ChoiceJob& job, int64_t row) {
  const float temperature = job.temperature != nullptr ? job.temperature[row] : job.constant;
  const float smallest = 1.17549435e-38f;  // below it the reciprocal is infinite
  return temperature < smallest ? smallest : temperature;
}

// Gumbel noise, as _random.gumbel_of
DL_HD P gumbel(const int32_t* row, int64_t i, int64_t n) {
  Integers bits{};
  if (i + width <= n)
    __builtin_memcpy(&bits, row + i, sizeof bits);
  else
    __builtin_memcpy(&bits, row + i, static_cast<size_t>(n - i) * sizeof(int32_t));
  const P u = (math::Bits<P>::convert(bits & 0x7fffffff) + P(0.5f)) * P(4.656612873e-10f);
  const P most(0.99999994f);
  return -math::log(-math::log1p_of_minus(select(u > most, most, u)));
}

void gumbel_softmax(const cpu::ChoiceJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.n;
  for (int64_t r = begin; r < end; ++r) {
    const float* logits = job.logits + r * n;
    const int32_t* bits = job.bits + r * n;
    float* soft = job.result + r * n;
    P best(-infinity), step(0.0f), where(0.0f);
    for (int64_t i = 0; i < n; i += width) {
      const P key = take(logits, i, n, -infinity) + gumbel(bits, i, n);
      put(soft, i, n, key);
      const auto higher = key > best;
      best = select(higher, key, best);
      where = select(higher, step, where);  // which step of this loop the lane's best is from
      step = step + P(1.0f);
    }
    float most = -infinity;
    int64_t index = 0;
    for (int lane = 0; lane < width; ++lane) {
      const int64_t at = static_cast<int64_t>(where.v[lane]) * width + lane;
      if (best.v[lane] > most || (best.v[lane] == most && at < index)) {
        most = best.v[lane];
        index = at;
      }
    }
    const P largest(most), scale(1.0f / temperature_of(job, r));
    P sum(0.0f);
    for (int64_t i = 0; i < n; i += width) {
      const P w = weight(take(soft, i, n, -infinity), largest, scale);
      put(soft, i, n, w);
      sum = sum + w;
    }
    const P inverse(1.0f / sum.sum());
    for (int64_t i = 0; i < n; i += width) put(soft, i, n, take(soft, i, n, 0.0f) * inverse);
    if (job.sample != nullptr) {
      float* sample = job.sample + r * n;
      __builtin_memset(sample, 0, static_cast<size_t>(n) * sizeof(float));
      if (n > 0) sample[index] = 1.0f;
    }
  }
}

void gumbel_softmax_backward(const cpu::ChoiceJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.n;
  for (int64_t r = begin; r < end; ++r) {
    const float *gradient = job.gradient + r * n, *soft = job.soft + r * n;
    float* result = job.result + r * n;
    P sum(0.0f);
    for (int64_t i = 0; i < n; i += width) sum = sum + take(gradient, i, n, 0.0f) * take(soft, i, n, 0.0f);
    const P mean(sum.sum()), scale(1.0f / temperature_of(job, r));
    for (int64_t i = 0; i < n; i += width)
      put(result, i, n, take(soft, i, n, 0.0f) * (take(gradient, i, n, 0.0f) - mean) * scale);
  }
}

// Marked logits: the distance to the row's largest logit, with a minus sign, except for the chosen element. So one
// tensor holds both the logits (up to a shift) and the choice.
DL_HD Mask<float> is_chosen(P marked) { return {math::Bits<P>::of(marked) >= 0}; }
DL_HD P distance(P marked) {
  return P(reinterpret_cast<Vectors<float>::Value>(math::Bits<P>::of(marked) & 0x7fffffff));
}

void choose(const cpu::ChoiceJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.n;
  for (int64_t r = begin; r < end && n > 0; ++r) {
    const float* logits = job.logits + r * n;
    float *sample = job.sample + r * n, *marked = job.result + r * n;
    const P largest(largest_of(logits, n));
    double total = 0;
    for (int64_t i = 0; i < n; i += width) {
      const P below = largest - take(logits, i, n, -infinity), w = math::exp_of_minus(below);
      put(marked, i, n, -below);
      put(sample, i, n, w);
      total += w.sum();
    }
    // first the pack in which the distribution function passes the threshold, then the element
    const double threshold = job.uniform[r] * total;
    double passed = 0;
    int64_t index = 0;
    for (int64_t i = 0; i < n; i += width) {
      const double sum = take(sample, i, n, 0.0f).sum();
      if (passed + sum <= threshold) {
        passed += sum;
        continue;
      }
      for (int64_t j = i; j < i + width && j < n; ++j) {
        if (!(sample[j] > 0.0f)) continue;  // a class of probability 0 is never chosen
        index = j;
        passed += sample[j];
        if (passed > threshold) break;
      }
      break;
    }
    __builtin_memset(sample, 0, static_cast<size_t>(n) * sizeof(float));
    sample[index] = 1.0f;
    marked[index] = __builtin_fabsf(marked[index]);
  }
}

void straight_through_backward(const cpu::ChoiceJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.n;
  for (int64_t r = begin; r < end; ++r) {
    const float *gradient = job.gradient + r * n, *marked = job.logits + r * n;
    float* result = job.result + r * n;
    const P scale(1.0f / temperature_of(job, r));
    P sum(0.0f), product(0.0f);
    for (int64_t i = 0; i < n; i += width) {
      const P w = math::exp_of_minus(distance(take(marked, i, n, infinity)) * scale);
      put(result, i, n, w);
      sum = sum + w;
      product = product + w * take(gradient, i, n, 0.0f);
    }
    const float inverse = 1.0f / sum.sum();
    const P mean(product.sum() * inverse), factor = P(inverse) * scale;
    for (int64_t i = 0; i < n; i += width)
      put(result, i, n, take(result, i, n, 0.0f) * (take(gradient, i, n, 0.0f) - mean) * factor);
  }
}

// 2 J(pi_D) g - J(pi) g / 2 with pi_D = (softmax(logits / temperature) + D) / 2. Where the temperature is 1 this is
// pi (g - g_D) / 2 + D (g_D - <pi, g>) / 2.
template <bool at_one>
DL_HD void reinmax_row(const float* gradient, const float* marked, float* result, int64_t n, float temperature) {
  const P scale(1.0f / temperature), zero(0.0f);
  P sum(0.0f), product(0.0f), tempered_sum(0.0f), tempered_product(0.0f), at_choice(0.0f);
  for (int64_t i = 0; i < n; i += width) {
    const P m = take(marked, i, n, -infinity), below = distance(m), g = take(gradient, i, n, 0.0f);
    const P w = math::exp_of_minus(below);
    put(result, i, n, w);
    sum = sum + w;
    product = product + w * g;
    at_choice = at_choice + select(is_chosen(m), g, zero);
    if constexpr (!at_one) {
      const P t = math::exp_of_minus(below * scale);
      tempered_sum = tempered_sum + t;
      tempered_product = tempered_product + t * g;
    }
  }
  const float inverse = 1.0f / sum.sum(), mean = product.sum() * inverse, chosen = at_choice.sum();
  const P half_inverse(0.5f * inverse);
  if constexpr (at_one) {
    const P offset(chosen), extra(0.5f * (chosen - mean));
    for (int64_t i = 0; i < n; i += width) {
      const P part = take(result, i, n, 0.0f) * half_inverse * (take(gradient, i, n, 0.0f) - offset);
      put(result, i, n, select(is_chosen(take(marked, i, n, -infinity)), part + extra, part));
    }
  } else {
    const float tempered_inverse = 1.0f / tempered_sum.sum();
    const float middle = 0.5f * (tempered_product.sum() * tempered_inverse + chosen);  // <pi_D, g>
    const P inverse_of_tempered(tempered_inverse), at_middle(middle), at_mean(mean), extra(chosen - middle);
    for (int64_t i = 0; i < n; i += width) {
      const P m = take(marked, i, n, -infinity), g = take(gradient, i, n, 0.0f), w = take(result, i, n, 0.0f);
      const P t = math::exp_of_minus(distance(m) * scale);
      const P part = t * inverse_of_tempered * (g - at_middle) - w * half_inverse * (g - at_mean);
      put(result, i, n, select(is_chosen(m), part + extra, part));
    }
  }
}

void reinmax_backward(const cpu::ChoiceJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.n;
  for (int64_t r = begin; r < end; ++r) {
    const float temperature = temperature_of(job, r);
    const auto row = temperature == 1.0f ? reinmax_row<true> : reinmax_row<false>;
    row(job.gradient + r * n, job.logits + r * n, job.result + r * n, n, temperature);
  }
}

constexpr cpu::ChoiceKernels set_of_kernels{gumbel_softmax, gumbel_softmax_backward, choose,
                                            straight_through_backward, reinmax_backward};

}  // namespace
}  // namespace DL_ISA

namespace cpu {
#define DL_CONCATENATE(a, b) a##b
#define DL_NAMED(a, b) DL_CONCATENATE(a, b)
const ChoiceKernels* DL_NAMED(choice_kernels_, DL_ISA)() { return &set_of_kernels; }
}  // namespace cpu
}  // namespace difflayers
