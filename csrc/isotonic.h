// Projection of one row onto a permutahedron, and its gradient: one source for host and device.
//
// In sorted order the projection is a - v, where v is the isotonic (decreasing) regression of a on b: it is constant
// on blocks of neighbours, and pool-adjacent-violators finds them in linear time.
//   rank, topk: a = s / t, b = w        l2: v = mean(a) - mean(b)
//   sort:       a = w / t, b = s        kl: v = LSE(a) - LSE(b); for rank and topk b = log w, and the result is the
//                                           exponential of the projection
// with s the scores in descending order (for sort, minus the scores in ascending order), t the temperature, and
// w = (n, ..., 1), for topk k ones and n - k zeros. Block by block the result is written as a difference from the
// block's mean or largest entry, so nothing cancels however small t is. Sums over w have closed forms. Everything is
// computed in double: the cost is that of the sorting and of exp, not of the width.
#pragma once

#include <cmath>
#include <cstdint>

#include "approximations.h"

namespace difflayers {
inline namespace DL_ISA {
namespace isotonic {

enum class Task { rank, sort, topk };

struct Block {
  int32_t begin, end;
  double sum;  // of s, kl: of the exponentials, relative to the block's first, which is its largest

  DL_HD double length() const { return end - begin; }
};

template <Task task, bool entropic, class T>
struct Row {
  const T* sorted;  // descending, for sort ascending
  int32_t n, k;
  double t;

  // s[i] - s[j]
  DL_HD double difference(int32_t i, int32_t j) const {
    const double x = static_cast<double>(sorted[i]), y = static_cast<double>(sorted[j]);
    return task == Task::sort ? y - x : x - y;
  }

  DL_HD double mean_of_weights(Block block) const {
    if constexpr (task == Task::topk) {
      const int32_t end = block.end < k ? block.end : k;
      return end > block.begin ? (end - block.begin) / block.length() : 0.0;
    } else {
      return n - 0.5 * (static_cast<double>(block.begin) + block.end - 1.0);
    }
  }

  // kl only. For sort: of exp(w / t), relative to the block's first.
  DL_HD double sum_of_weights(Block block) const {
    if constexpr (task == Task::sort)
      return block.end - block.begin == 1 ? 1.0 : std::expm1(-block.length() / t) / std::expm1(-1.0 / t);
    else
      return mean_of_weights(block) * block.length();
  }

  DL_HD Block single(int32_t i) const { return {i, i + 1, entropic ? 1.0 : 0.0}; }

  // Pools `next` into `block` if v does not decrease from the one to the other. NaN pools nothing.
  DL_HD bool pool(Block& block, Block next) const {
    const double d = difference(next.begin, block.begin);
    if constexpr (!entropic) {
      // the drops of the means of w and of s, times both lengths
      const double lengths = block.length() * next.length();
      const double of_weights = (mean_of_weights(block) - mean_of_weights(next)) * lengths;
      const double of_scores = block.sum * next.length() - next.sum * block.length() - d * lengths;
      if (!(task == Task::sort ? of_weights <= t * of_scores : of_scores <= t * of_weights)) return false;
      block.sum += next.sum + d * next.length();
    } else if constexpr (task == Task::sort) {
      const double exponent = d + (next.begin - block.begin) / t;
      const double ratio = sum_of_weights(next) * block.sum / (sum_of_weights(block) * next.sum);
      if (!(ratio == 1 ? exponent <= 0 : std::exp(exponent) <= ratio)) return false;
      block.sum += next.sum * std::exp(d);
    } else {
      const double factor = std::exp(d / t);
      // where the factor underflows to 0, only a weight of 0 pools
      if (!(block.sum * sum_of_weights(next) <= next.sum * sum_of_weights(block) * factor)) return false;
      block.sum += next.sum * factor;
    }
    block.end = next.end;
    return true;
  }

  // How many scores are not -inf; for topk only, elsewhere all are taken.
  DL_HD int32_t present() const {
    int32_t count = n;
    if constexpr (task == Task::topk)
      while (count > 0 && sorted[count - 1] == -INFINITY) --count;
    return count;
  }

  // Emits (i, result) for the sorted positions i of a block.
  template <class Emit>
  DL_HD void results(Block block, Emit emit) const {
    if constexpr (task == Task::sort) {
      const double middle = 0.5 * (static_cast<double>(block.begin) + block.end - 1.0);
      const double shift = entropic ? std::log(block.sum / sum_of_weights(block)) : block.sum / block.length();
      const double base = static_cast<double>(sorted[block.begin]) - shift;
      for (int32_t i = block.begin; i < block.end; ++i) emit(i, base + (i - (entropic ? block.begin : middle)) / t);
    } else if constexpr (entropic) {
      const double scale = sum_of_weights(block) / block.sum;
      if (block.end - block.begin == 1) return emit(block.begin, scale);
      for (int32_t i = block.begin; i < block.end; ++i) emit(i, std::exp(difference(i, block.begin) / t) * scale);
    } else {
      const double weight = mean_of_weights(block), mean = block.sum / block.length();
      for (int32_t i = block.begin; i < block.end; ++i) {
        double value = weight + (difference(i, block.begin) - mean) / t;
        if constexpr (task == Task::topk) value = value < 0 ? 0 : value > 1 ? 1 : value;  // rounding
        emit(i, value);
      }
    }
  }

  // Writes the result, in the order of the input (sort: sorted), and for each sorted position its block's begin.
  // `sums` is scratch for n numbers; until the end `starts` is the stack of blocks.
  template <class Index>
  DL_HD void project(const Index* order, double* sums, int32_t* starts, T* result) const {
    const auto emit = [&](int32_t i, double value) {
      result[task == Task::sort ? i : static_cast<int32_t>(order[i])] = static_cast<T>(value);
    };
    const int32_t count = t != t ? 0 : present();  // a temperature that is NaN makes its row NaN
    int32_t blocks = 0, end = n;
    for (int32_t i = 0; i < count; ++i) {
      Block last = single(i);
      while (blocks > 0) {
        Block before{starts[blocks - 1], last.begin, sums[blocks - 1]};
        if (!pool(before, last)) break;
        last = before;
        --blocks;
      }
      starts[blocks] = last.begin;
      sums[blocks++] = last.sum;
    }
    for (; end > count; --end) {
      starts[end - 1] = end - 1;
      emit(end - 1, t != t ? t : 0.0);
    }
    // from the last block on: block number b begins at b or later, so the stack is read before it is overwritten
    while (blocks > 0) {
      --blocks;
      const Block block{starts[blocks], end, sums[blocks]};
      results(block, emit);
      for (int32_t i = block.begin; i < end; ++i) starts[i] = block.begin;
      end = block.begin;
    }
  }
};

// The gradient of sum(g * result) by the scores; returns that by the temperature where it is wanted, else 0.
// `result` is that of the projection; x and of_x are in the order of the input.
template <Task task, bool entropic, class T>
DL_HD double differentiate(const T* g, const T* x, const T* result, const int32_t* order, const int32_t* starts,
                           int32_t n, double t, bool of_temperature, T* of_x) {
  double by_temperature = 0;
  for (int32_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && starts[end] == begin) ++end;
    const double length = end - begin, first = static_cast<double>(x[order[begin]]);
    if (end - begin == 1) {  // the exact rank or value: no rounding, and no -inf below
      of_x[order[begin]] = task == Task::sort ? g[begin] : T(0);
      continue;
    }
    double total = 0;
    if constexpr (task == Task::sort) {
      for (int32_t i = begin; i < end; ++i) total += static_cast<double>(g[i]);
      double factor = total / length;
      if constexpr (entropic) {
        double sum = 0;
        for (int32_t i = begin; i < end; ++i) {
          const double e = std::exp(first - static_cast<double>(x[order[i]]));
          of_x[order[i]] = static_cast<T>(e);
          sum += e;
        }
        factor = total / sum;
      }
      for (int32_t i = begin; i < end; ++i)
        of_x[order[i]] = static_cast<T>(entropic ? factor * static_cast<double>(of_x[order[i]]) : factor);
      if (of_temperature) {
        double middle = 0.5 * (length - 1);
        if constexpr (entropic) {  // the mean of i - begin under softmax(w / t)
          double sum = 0, moment = 0;
          for (int32_t i = begin; i < end; ++i) {
            const double e = std::exp(-(i - begin) / t);
            sum += e;
            moment += e * (i - begin);
          }
          middle = moment / sum;
        }
        for (int32_t i = begin; i < end; ++i)
          by_temperature += static_cast<double>(g[i]) * ((middle - (i - begin)) / t / t);
      }
    } else {
      // the gradient by a = s / t is h - p sum(h): h = g and p = 1 / length, or h = g r and p = r / sum(r), where
      // the sum is that of the rounded r, so that a gradient which is the same in all of the block gives 0
      double weight = 0;
      for (int32_t i = begin; i < end; ++i) {
        const int32_t at = order[i];
        const double scale = entropic ? static_cast<double>(result[at]) : 1.0;
        total += static_cast<double>(g[at]) * scale;
        weight += scale;
      }
      const double mean = weight > 0 ? total / weight : 0;  // topk with k = 0 has no weights
      for (int32_t i = begin; i < end; ++i) {
        const int32_t at = order[i];
        const double scale = entropic ? static_cast<double>(result[at]) : 1.0;
        const double by_x = scale * (static_cast<double>(g[at]) - mean) / t;
        of_x[at] = static_cast<T>(by_x);
        // relative to the first score of the block, where the gradients sum to 0
        if (of_temperature) by_temperature -= by_x * ((static_cast<double>(x[at]) - first) / t);
      }
    }
  }
  return by_temperature;
}

}  // namespace isotonic
}  // namespace DL_ISA
}  // namespace difflayers
