// One tile of a call: its rows in registers' order, the tape, and the walk through the network's steps.
#pragma once

#include "memory.h"

#define DL_INLINE __attribute__((always_inline))

namespace difflayers {
inline namespace DL_ISA {
namespace {

using cpu::Job;
using cpu::Plan;
using cpu::Step;
using cpu::What;

constexpr int64_t tape_limit = int64_t(8) << 20;  // bytes
constexpr int stage_packets = 32;

enum class Pass { forward, gradient, curvature };

// The state is the scores X and a payload F that travel forward, and their adjoint G and a payload R that travel
// backward.
template <class S, bool dual>
class TileState {
 protected:
  using T = Pack<S>;
  using Num = typename NumberIn<S, dual>::Type;
  using N = NumberOf<Num>;
  using A = Access<Num>;
  static constexpr int planes_of_number = dual ? 2 : 1;

  TileState(const Job<S>& job, Pass pass, int64_t tile, void* scratch)
      : job(job), plan(*job.plan), pass(pass), n(plan.n), width(plan.width), row(tile * plan.width),
        live(static_cast<int>(job.rows - row < width ? job.rows - row : width)), soft(job.hard ? 0 : 1),
        arena{static_cast<char*>(scratch)} {
    const bool single = job.what != What::values && !job.by_column;  // a payload, column by column
    const bool backwards = pass != Pass::forward;
    X = span(n * width);
    if (single && (backwards || job.what == What::carry)) F = span(n * width);
    if (backwards) G = span(n * width);
    if (single && (backwards || job.what == What::carry_transposed)) R = span(n * width);
    for (auto& array : stage)
      for (auto& side : array)
        if (width < lanes) side = span(stage_packets * lanes);

    const int planes = tape_planes();
    const int64_t packet_bytes = lanes * static_cast<int64_t>(sizeof(S)) * planes_of_number;
    if (planes > 0) {
      int64_t longest = plan.packets;
      if (!job.by_column && plan.packets * packet_bytes * planes > tape_limit) {
        segments = root(plan.layers);
        checkpoints = span(segments * n * width * (F.p != nullptr ? 2 : 1));
        longest = share(plan.packets, segments) + stage_or_layer_limit();
      }
      for (int i = 0; i < planes; ++i) tape[i] = span(longest * lanes);
      bounds = arena.take<int64_t>(segments + 1);
    }
    if (job.by_column) {
      column = span(n * lanes);
      visiting = arena.take<int32_t>(plan.comparators);
      active = arena.take<char>(n);
      if (backwards) {
        reverse_column = span(n * lanes);
        if (plan.comparators * packet_bytes > tape_limit) column_segments = root(plan.layers);
        differences = span(share(plan.comparators, column_segments) * lanes);
        if (column_segments > 1) checkpoints = span(column_segments * n * lanes);
      }
    }
    if (scratch == nullptr) return;
    if (planes > 0) cut();
    load_steepness();
  }

  size_t bytes() const { return arena.used; }

  const Job<S>& job;
  const Plan& plan;
  const Pass pass;
  const int64_t n, width, row;
  const int live;
  const S soft;
  Arena arena;
  Span<S> X{}, F{}, G{}, R{};  // [n][width]
  Span<S> stage[2][2]{};       // gathered sides of two arrays
  Span<S> tape[3]{};
  Span<S> checkpoints{};
  Span<S> column{}, reverse_column{}, differences{};  // 16 payload columns of one sample, [n][16]
  int64_t* bounds = nullptr;                            // first step of each segment
  const int32_t* visited = nullptr;
  int32_t* visiting = nullptr;
  char* active = nullptr;
  int64_t segments = 1, column_segments = 1;
  Span<S> steepness_sums{};
  S steepness_planes[2 * lanes];
  bool broken[lanes];

  static int64_t root(int64_t x) {
    int64_t r = 1;
    while (r * r < x) ++r;
    return r;
  }
  static int64_t share(int64_t total, int64_t parts) { return (total + parts - 1) / parts; }
  int tape_planes() const {
    if (pass == Pass::forward) return job.what == What::carry_transposed || job.by_column ? 1 : 0;
    if (job.by_column) return 3;                                             // d, c, gradient by c
    if (job.what == What::values) return job.of_steepness_wanted ? 2 : 1;    // e, r w_s
    return 2;                                                                // d, differences of F
  }
  // a segment ends with the step that fills it, so it may exceed its share by one step
  int64_t stage_or_layer_limit() const {
    int64_t longest = 0;
    for (int64_t i = 0; i < plan.steps; ++i)
      if (plan.step[i].packets > longest) longest = plan.step[i].packets;
    return longest;
  }
  void cut() {
    int64_t step = 0;
    for (int64_t i = 0; i < segments; ++i) {
      bounds[i] = step;
      while (step < plan.steps && plan.step[step].tape < (i + 1) * share(plan.packets, segments)) ++step;
    }
    bounds[segments] = plan.steps;
  }


  void load_steepness() {
    for (int l = 0; l < lanes; ++l) {
      const int w = l % static_cast<int>(width);
      steepness_planes[l] = job.steepness != nullptr && w < live ? job.steepness[row + w] : job.constant;
      const bool moves = pass == Pass::curvature && job.h_steepness != nullptr && w < live;
      steepness_planes[lanes + l] = moves ? job.h_steepness[row + w] : S(0);
    }
  }

  // wires [begin, end) from element i * step of each row, zeros elsewhere; `tangent` likewise or null
  void load(Span<S> to, const S* from, const S* tangent, int64_t row_stride, int64_t step, int64_t begin, int64_t end,
            int64_t tangent_stride = -1) {
    if (begin > 0 || end < n || live < width || (planes_of_number == 2 && tangent == nullptr)) fill(to, n * width);
    const S* sources[2] = {from, tangent};
    const int64_t strides[2] = {row_stride, tangent_stride < 0 ? row_stride : tangent_stride};
    for (int plane = 0; plane < planes_of_number; ++plane) {
      if (sources[plane] == nullptr) continue;
      S* const target = to.p + plane * to.plane + begin * width;
      interleave(target, sources[plane] + row * strides[plane], strides[plane], step, end - begin);
    }
  }

  // target[i][w] = source[w][i * step] for the rows of the tile and count wires; 4 x 4 blocks where memory allows
  void interleave(S* target, const S* source, int64_t row_stride, int64_t step, int64_t count) {
    const int64_t whole_rows = step == 1 && width >= 4 ? live / 4 * 4 : 0;
    const int64_t whole = count / 4 * 4;
    for (int64_t w = 0; w < whole_rows; w += 4)
      for (int64_t i = 0; i < whole; i += 4) transpose_block(source + w * row_stride + i, row_stride, target + i * width + w, width);
    for (int64_t w = 0; w < live; ++w)
      for (int64_t i = w < whole_rows ? whole : 0; i < count; ++i) target[i * width + w] = source[w * row_stride + i * step];
  }
  // the other way round: target[w][i * step] = source[i][w]
  void separate(S* target, const S* source, int64_t row_stride, int64_t step, int64_t count) {
    const int64_t whole_rows = step == 1 && width >= 4 ? live / 4 * 4 : 0;
    const int64_t whole = count / 4 * 4;
    for (int64_t w = 0; w < whole_rows; w += 4)
      for (int64_t i = 0; i < whole; i += 4) transpose_block(source + i * width + w, width, target + w * row_stride + i, row_stride);
    for (int64_t w = 0; w < live; ++w)
      for (int64_t i = w < whole_rows ? whole : 0; i < count; ++i) target[w * row_stride + i * step] = source[i * width + w];
  }

  void load_scores() {
    load(X, job.scores, pass == Pass::curvature ? job.h_scores : nullptr, n, 1, 0, n);
    // a row with a NaN is found after interleaving, many rows at a time
    S count[lanes] = {};
    const int64_t total = n * width, whole = total / lanes * lanes;
    for (int l = 0; l < lanes; l += T::size) {
      T sum(0);
      for (int64_t i = l; i < whole; i += lanes) {
        const T x = T::load(X.p + i);
        sum = sum + select(x != x, T(1), T(0));
      }
      sum.store(count + l);
    }
    for (int64_t i = whole; i < total; ++i) count[i % lanes] += X.p[i] != X.p[i];
    for (int w = 0; w < width; ++w) broken[w] = false;
    for (int64_t l = 0; l < lanes; ++l) broken[l % width] |= count[l] > 0;
  }

  // the plane that the caller wants: values, or tangents in the second derivative
  const S* wanted(Span<S> a) const { return a.p + (planes_of_number - 1) * a.plane; }

  void store(Span<S> from, S* to, int64_t row_stride, int64_t step, int64_t begin, int64_t end, bool add = false) {
    const S* const source = wanted(from) + begin * width;
    S* const target = to + row * row_stride;
    if (!add) separate(target, source, row_stride, step, end - begin);
    for (int64_t w = 0; w < live; ++w) {
      for (int64_t i = 0; add && i < end - begin; ++i) target[w * row_stride + i * step] += source[i * width + w];
      for (int64_t i = 0; broken[w] && i < end - begin; ++i) target[w * row_stride + i * step] = S(NAN);
    }
  }

  Span<S> span(int64_t count) { return arena.span<S>(count, planes_of_number); }
  void fill(Span<S> a, int64_t count) {
    for (int plane = 0; plane < planes_of_number; ++plane)
      for (int64_t i = 0; i < count; ++i) a.p[plane * a.plane + i] = 0;
  }
  void copy(Span<S> to, Span<S> from, int64_t count) {
    for (int plane = 0; plane < planes_of_number; ++plane)
      __builtin_memcpy(to.p + plane * to.plane, from.p + plane * from.plane, count * sizeof(S));
  }

  // The registers of one array on both sides of a comparator.
  struct Sides {
    Num a, b;
  };
  static DL_HD Sides load_sides(Span<S> a, Span<S> b) { return {A::get(a), A::get(b)}; }
  static DL_HD void store_sides(Span<S> a, Span<S> b, const Sides& sides) {
    A::set(a, sides.a);
    A::set(b, sides.b);
  }

  // Calls body(x, other, lane, at) for every register of steps [begin, end), backwards if told, and stores what it
  // leaves in x and other: the sides in the first and in the last array. `lane` is the place in the packet, `at`
  // the one on the tape.
  template <int arrays, bool backwards, class Body>
  void walk(Span<S> (&wires)[arrays], int64_t begin, int64_t end, int64_t base, Body body) {
    if (begin == end) return;
    const Span<S> first = wires[0], last = wires[arrays - 1];
    const auto apply = [=](Span<S> a, Span<S> b, Span<S> other_a, Span<S> other_b, int64_t lane, int64_t at) DL_INLINE {
      Sides x = load_sides(a, b), other{};
      if constexpr (arrays > 1) other = load_sides(other_a, other_b);
      body(x, other, lane, at);
      store_sides(a, b, x);
      if constexpr (arrays > 1) store_sides(other_a, other_b, other);
    };
    if (width == lanes) {
      // a comparator fills a packet: no steps needed
      const int64_t from = plan.step[begin].comparator;
      const int64_t to = plan.step[end - 1].comparator + plan.step[end - 1].count;
      const int32_t *const lower = plan.lower, *const upper = plan.upper;
      for (int64_t i = 0; i < to - from; ++i) {
        const int64_t k = backwards ? to - 1 - i : from + i;
        const int64_t a = int64_t(lower[k]) * lanes, b = int64_t(upper[k]) * lanes;
        for (int64_t l = 0; l < lanes; l += T::size)
          apply(first.at(a + l), first.at(b + l), last.at(a + l), last.at(b + l), l, (k - base) * lanes + l);
      }
      return;
    }
    for (int64_t i = 0; i < end - begin; ++i) {
      const Step step = plan.step[backwards ? end - 1 - i : begin + i];
      const int64_t tape_at = (step.tape - base) * lanes;
      if constexpr (T::permutes) {
        if (step.kind == cpu::permuted) {
          for (int64_t p = 0; p < step.packets; ++p) {
            const cpu::Window window = plan.window[step.tape + p];
            const int32_t* const index = plan.pattern + int64_t(window.pattern) * 4 * lanes;
            Sides x = permute(load_sides(first.at(window.a), first.at(window.b)), index), other{};
            if constexpr (arrays > 1) other = permute(load_sides(last.at(window.a), last.at(window.b)), index);
            body(x, other, 0, tape_at + p * lanes);
            store_sides(first.at(window.a), first.at(window.b), permute(x, index + 2 * lanes));
            if constexpr (arrays > 1)
              store_sides(last.at(window.a), last.at(window.b), permute(other, index + 2 * lanes));
          }
          continue;
        }
      }
      const bool gathered = step.kind != cpu::direct;
      const int32_t* const lower = plan.lower + step.comparator;
      const int32_t* const upper = plan.upper + step.comparator;
      if (gathered) gather<arrays, false>(wires, lower, upper, step);
      const int64_t a = int64_t(lower[0]) * width, b = int64_t(upper[0]) * width;
      const Span<S> first_a = gathered ? stage[0][0] : first.at(a), first_b = gathered ? stage[0][1] : first.at(b);
      const Span<S> last_a = gathered ? stage[arrays - 1][0] : last.at(a);
      const Span<S> last_b = gathered ? stage[arrays - 1][1] : last.at(b);
      for (int64_t l = 0; l < int64_t(step.packets) * lanes; l += T::size)
        apply(first_a.at(l), first_b.at(l), last_a.at(l), last_b.at(l), l % lanes, tape_at + l);
      if (gathered) gather<arrays, true>(wires, lower, upper, step);
    }
  }
  static DL_HD Sides permute(const Sides& x, const int32_t* index) {
    return {A::permute(x.a, x.b, index), A::permute(x.a, x.b, index + lanes)};
  }
  // The wires of a step's comparators -> the stage, or back.
  template <int arrays, bool back>
  void gather(Span<S> (&wires)[arrays], const int32_t* lower, const int32_t* upper, const Step& step) {
    for (int k = 0; k < arrays; ++k)
      for (int plane = 0; plane < planes_of_number; ++plane) {
        S* const wire = wires[k].p + plane * wires[k].plane;
        S* const sides[2] = {stage[k][0].p + plane * stage[k][0].plane, stage[k][1].p + plane * stage[k][1].plane};
        exchange<back>(width, wire, sides[0], lower, step.count);
        exchange<back>(width, wire, sides[1], upper, step.count);
        for (int64_t l = step.count * width; !back && l < int64_t(step.packets) * lanes; ++l)
          sides[0][l] = sides[1][l] = S(0);
      }
  }

  // Forward through all segments, then backward through each with its own tape, which begins at packet `base`.
  template <class Forward, class AtEnd, class Backward>
  void sweep(Forward forward, AtEnd at_end, Backward backward) {
    const auto run = [&](int64_t i, auto& pass_over) {
      pass_over(bounds[i], bounds[i + 1], bounds[i] < plan.steps ? plan.step[bounds[i]].tape : plan.packets);
    };
    const int64_t state = n * width;
    const bool two = F.p != nullptr;
    for (int64_t i = 0; i < segments; ++i) {
      if (segments > 1) {
        copy(checkpoints.at(i * state * (1 + two)), X, state);
        if (two) copy(checkpoints.at((i * 2 + 1) * state), F, state);
      }
      run(i, forward);
    }
    at_end();
    for (int64_t i = segments - 1; i >= 0; --i) {
      if (i < segments - 1) {
        copy(X, checkpoints.at(i * state * (1 + two)), state);
        if (two) copy(F, checkpoints.at((i * 2 + 1) * state), state);
        run(i, forward);
      }
      run(i, backward);
    }
  }
};

}  // namespace
}  // namespace DL_ISA
}  // namespace difflayers
