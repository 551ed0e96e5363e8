// The CPU kernels of the sorting family, compiled once per instruction set (DL_ISA names it).
//
// A tile of `width` samples is interleaved, wire by wire, so that one packet of 16 lanes holds 16 / width
// comparators of a layer: many samples fill the lanes across the batch, few fill them within the sample.
// Forward keeps nothing; the gradient replays the network in cache, writes a tape, and runs it backwards.
// Where the tape would exceed 8 MiB, the network is cut into sqrt(layers) segments with a checkpoint each.
// The second derivative is the gradient run on dual numbers.
//
// No inline function of the standard library may be used here: the linker would merge the copies of the
// different instruction sets.
#include "sorting_kernels.h"

#include "pack.h"

#include "../swap.h"

#define DL_INLINE __attribute__((always_inline))

namespace difflayers {
inline namespace DL_ISA {
namespace {

using cpu::Job;
using cpu::lanes;
using cpu::Plan;
using cpu::Step;
using cpu::What;

constexpr int64_t tape_limit = int64_t(8) << 20;  // bytes
constexpr int stage_packets = 32;

// Memory holds scalars S, registers Num: a Pack<S>, or a dual of two packs whose values and tangents lie in
// separate planes of an array.
template <class S>
struct Span {
  S* p;
  int64_t plane;
  Span at(int64_t i) const { return {p + i, plane}; }
};
template <class S, bool dual>
struct NumberIn {
  using Type = Pack<S>;
};
template <class S>
struct NumberIn<S, true> {
  using Type = Dual<Pack<S>>;
};
template <class Num>
struct Access;
template <class S>
struct Access<Pack<S>> {
  static DL_HD Pack<S> get(Span<S> a) { return Pack<S>::load(a.p); }
  static DL_HD void set(Span<S> a, Pack<S> x) { x.store(a.p); }
  static DL_HD Pack<S> broadcast(Span<S> a) { return Pack<S>(*a.p); }
  static DL_HD void add_sum(Span<S> a, Pack<S> x) { *a.p += x.sum(); }
  static DL_HD Pack<S> permute(Pack<S> a, Pack<S> b, const int32_t* index) { return a.permute(b, index); }
};
template <class S>
struct Access<Dual<Pack<S>>> {
  using Num = Dual<Pack<S>>;
  static DL_HD Num get(Span<S> a) { return {Pack<S>::load(a.p), Pack<S>::load(a.p + a.plane)}; }
  static DL_HD void set(Span<S> a, Num x) {
    x.v.store(a.p);
    x.t.store(a.p + a.plane);
  }
  static DL_HD Num broadcast(Span<S> a) { return {Pack<S>(*a.p), Pack<S>(a.p[a.plane])}; }
  static DL_HD void add_sum(Span<S> a, Num x) {
    *a.p += x.v.sum();
    a.p[a.plane] += x.t.sum();
  }
  static DL_HD Num permute(Num a, Num b, const int32_t* index) {
    return {a.v.permute(b.v, index), a.t.permute(b.t, index)};
  }
};

// Hands out pieces of the scratch; without one it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class Element>
  Element* take(int64_t count) {
    Element* piece = reinterpret_cast<Element*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(Element) + 63) / 64 * 64;
    return piece;
  }
  template <class S>
  Span<S> span(int64_t count, int planes) {
    const int64_t plane = (count + lanes - 1) / lanes * lanes;
    return {take<S>(plane * planes), plane};
  }
};

// A 4 x 4 block, transposed.
template <class S>
void transpose_block(const S* from, int64_t from_stride, S* to, int64_t to_stride) {
  typedef S Four __attribute__((vector_size(4 * sizeof(S))));
  Four r[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&r[i], from + i * from_stride, sizeof(Four));
  const Four a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  const Four column[4] = {
      __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
      __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * to_stride, &column[i], sizeof(Four));
}

template <int width, bool out, class T>
void exchange_fixed(T* wires, T* stage, const int32_t* index, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    T* wire = wires + int64_t(index[k]) * width;
    for (int w = 0; w < width; ++w) (out ? wire : stage + k * width)[w] = (out ? stage + k * width : wire)[w];
  }
}

// Wires named by index -> contiguous stage, or back.
template <bool out, class T>
void exchange(int64_t width, T* wires, T* stage, const int32_t* index, int64_t count) {
  switch (width) {
    case 1: return exchange_fixed<1, out>(wires, stage, index, count);
    case 2: return exchange_fixed<2, out>(wires, stage, index, count);
    case 4: return exchange_fixed<4, out>(wires, stage, index, count);
    case 8: return exchange_fixed<8, out>(wires, stage, index, count);
    default: return exchange_fixed<16, out>(wires, stage, index, count);
  }
}

// Calls f with the swap's type.
template <class F>
auto with_swap(int32_t swap, F f) {
  switch (static_cast<SwapKind>(swap)) {
    case SwapKind::logistic: return f(Logistic{});
    case SwapKind::logistic_art: return f(LogisticART{});
    case SwapKind::gaussian: return f(Gaussian{});
    case SwapKind::reciprocal: return f(Reciprocal{});
    case SwapKind::optimal: return f(Optimal{});
    default: return f(Cauchy{});
  }
}

enum class Pass { forward, gradient, curvature };

// What a forward pass writes to the tape.
enum class Tape { none, weight, adjoint, adjoint_and_steepness, difference, difference_and_weight };

// One tile: the state is the scores X and a payload F that travel forward, and their adjoint G and a payload R
// that travel backward. The gradient by a mixing weight is (R_a - R_b)(F_b - F_a) whichever of the two is the
// payload and which the incoming gradient, so one pass serves P V and its transpose.
template <class S, bool dual>
class Tile {
  using T = Pack<S>;
  using Num = typename NumberIn<S, dual>::Type;
  using N = NumberOf<Num>;
  using A = Access<Num>;
  static constexpr int planes_of_number = dual ? 2 : 1;

 public:
  Tile(const Job<S>& job, Pass pass, int64_t tile, void* scratch)
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

  void forward() {
    load_scores();
    const int64_t wanted = job.last - job.first;
    if (job.what == What::values) {
      advance<Tape::none, false>(0, plan.steps, 0);
      return store(X, job.result, wanted, 1, job.first, job.last);
    }
    if (job.by_column) {
      advance<Tape::weight, false>(0, plan.steps, 0);
      for (int w = 0; w < live; ++w) columns_forward(w);
      return;
    }
    for (int64_t j = 0; j < job.m; ++j) {
      if (j > 0) load_scores();
      if (job.what == What::carry) {
        load(F, job.payload + j, nullptr, job.payload_stride, job.m, 0, n);
        advance<Tape::none, true>(0, plan.steps, 0);
        store(F, job.result + j, wanted * job.m, job.m, job.first, job.last);
      } else {
        load(R, job.payload + j, nullptr, job.payload_stride, job.m, job.first, job.last);
        sweep([&](int64_t begin, int64_t end, int64_t base) { advance<Tape::weight, false>(begin, end, base); },
              [] {}, [&](int64_t begin, int64_t end, int64_t base) { mix_back(begin, end, base); });
        store(R, job.result + j, n * job.m, job.m, 0, n);
      }
    }
  }

  // The derivatives by scores, steepness and payload; on duals, their derivatives in the direction h.
  void gradient() {
    S sums[2 * lanes] = {};
    steepness_sums = {sums, lanes};
    load_scores();
    if (job.what == What::values)
      gradient_of_values();
    else if (job.by_column)
      gradient_by_columns();
    else
      for (int64_t j = 0; j < job.m; ++j) gradient_of_column(j);
    if (job.of_steepness == nullptr) return;
    for (int w = 0; w < live; ++w) {
      S sum = 0;
      for (int64_t l = w; l < lanes; l += width) sum += wanted(steepness_sums)[l];
      job.of_steepness[row + w] = broken[w] ? S(NAN) : sum;
    }
  }

 private:
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
  void load(Span<S> to, const S* from, const S* tangent, int64_t row_stride, int64_t step, int64_t begin,
            int64_t end) {
    if (begin > 0 || end < n || live < width || (planes_of_number == 2 && tangent == nullptr)) fill(to, n * width);
    const S* sources[2] = {from, tangent};
    for (int plane = 0; plane < planes_of_number; ++plane) {
      if (sources[plane] == nullptr) continue;
      const S* const source = sources[plane] + row * row_stride;
      S* const target = to.p + plane * to.plane + begin * width;
      interleave(target, source, row_stride, step, end - begin);
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

  // One pass over steps [begin, end): X, and F when it carries a payload column.
  template <Tape kind, bool carry>
  void advance(int64_t begin, int64_t end, int64_t base) {
    with_swap(job.swap, [&](auto swap) { advance_with<decltype(swap), kind, carry>(begin, end, base); });
  }
  template <class SwapType, Tape kind, bool carry>
  void advance_with(int64_t begin, int64_t end, int64_t base) {
    Span<S> wires[1 + carry];
    wires[0] = X;
    if constexpr (carry) wires[carry] = F;
    const Span<S> steep{steepness_planes, lanes};
    const T parameter(job.parameter), soft(this->soft);
    const Span<S> first = tape[0], next = tape[1];
    walk<1 + carry, false>(wires, begin, end, base, [=](Sides& x, Sides& f, int64_t lane, int64_t at) DL_INLINE {
      const Num s = A::get(steep.at(lane)), d = x.b - x.a;
      const Pair<Num> pair = compare(d);
      const Terms<Num> t = relax<SwapType>(pair, s, parameter);
      const Num moved = shift(pair, t, s, soft);
      x = {select(pair.exchanged, x.b, x.a) + moved, select(pair.exchanged, x.a, x.b) - moved};
      if constexpr (kind == Tape::weight) A::set(first.at(at), weight(pair, t, soft));
      if constexpr (kind == Tape::adjoint || kind == Tape::adjoint_and_steepness)
        A::set(first.at(at), signed_e(pair, t));
      if constexpr (kind == Tape::adjoint_and_steepness) A::set(next.at(at), pair.r * t.ws);
      if constexpr (kind == Tape::difference || kind == Tape::difference_and_weight) A::set(first.at(at), d);
      if constexpr (kind == Tape::difference_and_weight) A::set(next.at(at), weight(pair, t, soft));
      if constexpr (carry) {
        if constexpr (kind == Tape::difference) A::set(next.at(at), f.b - f.a);
        mix(weight(pair, t, soft), f.a, f.b);
      }
    });
  }

  // R backwards through mixing weights on the tape.
  void mix_back(int64_t begin, int64_t end, int64_t base) {
    Span<S> wires[1] = {R};
    const Span<S> c = tape[0];
    walk<1, true>(wires, begin, end, base, [=](Sides& r, Sides&, int64_t, int64_t at)
                                              DL_INLINE { mix(A::get(c.at(at)), r.a, r.b); });
  }
  static DL_HD void mix_at(Span<S> a, Span<S> b, Num weight) {
    Num u = A::get(a), v = A::get(b);
    mix(weight, u, v);
    A::set(a, u);
    A::set(b, v);
  }

  // G backwards through e (and r w_s) on the tape.
  template <bool steepness>
  void adjoint_back(int64_t begin, int64_t end, int64_t base) {
    Span<S> wires[1] = {G};
    const Span<S> e = tape[0], moved_by_s = tape[1], sums = steepness_sums;
    walk<1, true>(wires, begin, end, base, [=](Sides& g, Sides&, int64_t lane, int64_t at) DL_INLINE {
      if constexpr (steepness) add(sums.at(lane), (g.a - g.b) * A::get(moved_by_s.at(at)));
      mix_lean(A::get(e.at(at)), g.a, g.b);
    });
  }
  static DL_HD void add(Span<S> to, Num x) { A::set(to, A::get(to) + x); }

  // G backwards through d on the tape, with the gradient by c from R and the differences of F (fused), or
  // from the tape.
  template <bool fused>
  void decision_back(int64_t begin, int64_t end, int64_t base) {
    with_swap(job.swap, [&](auto swap) { decision_back_with<decltype(swap), fused>(begin, end, base); });
  }
  template <class SwapType, bool fused>
  void decision_back_with(int64_t begin, int64_t end, int64_t base) {
    Span<S> wires[1 + fused];
    wires[0] = G;
    if constexpr (fused) wires[fused] = R;
    const Span<S> steep{steepness_planes, lanes}, sums = steepness_sums;
    const T parameter(job.parameter), soft(this->soft);
    const Span<S> ds = tape[0], differences_of_f = tape[1], of_weight = tape[2];
    const bool of_steepness = job.of_steepness_wanted;
    walk<1 + fused, true>(wires, begin, end, base, [=](Sides& g, Sides& r, int64_t lane, int64_t at) DL_INLINE {
      const Pair<Num> pair = compare(A::get(ds.at(at)));
      const Terms<Num> t = relax<SwapType>(pair, A::get(steep.at(lane)), parameter);
      Num of_c;
      if constexpr (fused) {
        of_c = (r.a - r.b) * A::get(differences_of_f.at(at));
        mix(weight(pair, t, soft), r.a, r.b);
      } else {
        of_c = A::get(of_weight.at(at));
      }
      if (of_steepness) add(sums.at(lane), of_c * weight_by_s(pair, t) + (g.a - g.b) * (pair.r * t.ws));
      mix_lean(signed_e(pair, t), g.a, g.b);
      const Num of_d = of_c * weight_by_d(pair, t);
      g = {g.a - of_d, g.b + of_d};
    });
  }

  void gradient_of_values() {
    const int64_t wanted = job.last - job.first;
    load(G, job.gradient, nullptr, wanted, 1, job.first, job.last);
    const auto at_end = [&] {
      if (pass == Pass::curvature) store(X, job.result, wanted, 1, job.first, job.last);
    };
    if (job.of_steepness_wanted)
      sweep([&](int64_t begin, int64_t end, int64_t base) { advance<Tape::adjoint_and_steepness, false>(begin, end, base); },
            at_end, [&](int64_t begin, int64_t end, int64_t base) { adjoint_back<true>(begin, end, base); });
    else
      sweep([&](int64_t begin, int64_t end, int64_t base) { advance<Tape::adjoint, false>(begin, end, base); },
            at_end, [&](int64_t begin, int64_t end, int64_t base) { adjoint_back<false>(begin, end, base); });
    store(G, job.of_scores, n, 1, 0, n);
  }

  // Column j of the payload and of the gradient by the result; F is the one that enters at the inputs.
  void gradient_of_column(int64_t j) {
    const bool transposed = job.what == What::carry_transposed;
    const int64_t m = job.m, wanted = job.last - job.first;
    if (j > 0) load_scores();
    fill(G, n * width);
    if (transposed) {
      load(F, job.gradient + j, nullptr, n * m, m, 0, n);
      load(R, job.payload + j, column_of(job.h_payload, j), job.payload_stride, m, job.first, job.last);
    } else {
      load(F, job.payload + j, column_of(job.h_payload, j), job.payload_stride, m, 0, n);
      load(R, job.gradient + j, nullptr, wanted * m, m, job.first, job.last);
    }
    sweep([&](int64_t begin, int64_t end, int64_t base) { advance<Tape::difference, true>(begin, end, base); },
          [&] {
            S* to = transposed ? job.of_payload : pass == Pass::curvature ? job.result : nullptr;
            if (to != nullptr) store(F, to + j, wanted * m, m, job.first, job.last);
          },
          [&](int64_t begin, int64_t end, int64_t base) { decision_back<true>(begin, end, base); });
    S* to = !transposed ? job.of_payload : pass == Pass::curvature ? job.result : nullptr;
    if (to != nullptr) store(R, to + j, n * m, m, 0, n);
    store(G, job.of_scores, n, 1, 0, n, j > 0);
  }
  static const S* column_of(const S* base, int64_t j) { return base == nullptr ? nullptr : base + j; }

  // --- payloads of many columns: 16 columns of one sample in the lanes -----------------------------------

  // Points `visited` at the comparators that act on something other than zeros when column tile j enters.
  int64_t reach(int64_t j) {
    if (job.what == What::matrix && plan.reach != nullptr) {
      visited = plan.reach + plan.reach_begin[j / lanes];
      return plan.reach_begin[j / lanes + 1] - plan.reach_begin[j / lanes];
    }
    visited = visiting;
    return job.what == What::matrix ? cpu::reach(plan, j, j + lanes, active, visiting)
                                    : cpu::reach(plan, 0, n, active, visiting);
  }

  void load_column(Span<S> to, const S* from, const S* tangent, int64_t begin, int64_t end, int64_t j, int64_t m) {
    const int64_t filled = m - j < lanes ? m - j : lanes;
    if (begin > 0 || end < n || filled < lanes || (planes_of_number == 2 && tangent == nullptr)) fill(to, n * lanes);
    const S* sources[2] = {from, tangent};
    for (int plane = 0; plane < planes_of_number; ++plane)
      for (int64_t i = begin; sources[plane] != nullptr && i < end; ++i)
        for (int64_t l = 0; l < filled; ++l)
          to.p[plane * to.plane + i * lanes + l] = sources[plane][(i - begin) * m + j + l];
  }
  void load_identity(Span<S> to, int64_t j) {
    fill(to, n * lanes);
    for (int64_t l = 0; l < lanes && j + l < n; ++l) to.p[(j + l) * lanes + l] = S(1);
  }
  void store_column(Span<S> from, S* to, int64_t begin, int64_t end, int64_t j, int64_t m, bool nan) {
    const int64_t filled = m - j < lanes ? m - j : lanes;
    const S* source = wanted(from);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t l = 0; l < filled; ++l) to[(i - begin) * m + j + l] = nan ? S(NAN) : source[i * lanes + l];
  }

  // The column through visited comparators [begin, end), with the differences on their own tape if told.
  // (Members are copied first: stores could change them, as far as the compiler knows.)
  template <bool keep>
  void columns_advance(int64_t begin, int64_t end, int64_t w) {
    const Span<S> c = tape[keep ? 1 : 0].at(w), state = column;
    const int32_t *const visits = visited, *const lower = plan.lower, *const upper = plan.upper, *const slot = plan.slot;
    Span<S> difference = differences;
    for (int64_t v = begin; v < end; ++v) {
      const int32_t k = visits[v];
      const Num weight = A::broadcast(c.at(slot[k]));
      const Span<S> a = state.at(int64_t(lower[k]) * lanes), b = state.at(int64_t(upper[k]) * lanes);
      for (int64_t l = 0; l < lanes; l += T::size) {
        if constexpr (keep) A::set(difference.at(l), A::get(b.at(l)) - A::get(a.at(l)));
        mix_at(a.at(l), b.at(l), weight);
      }
      if constexpr (keep) difference = difference.at(lanes);
    }
  }
  // The reverse column back through them; adds the sum of (R_a - R_b)(F_b - F_a) to the gradient by each weight.
  void columns_back(int64_t begin, int64_t end, int64_t w) {
    const Span<S> c = tape[1].at(w), of_c = tape[2].at(w), state = reverse_column, kept = differences;
    const int32_t *const visits = visited, *const lower = plan.lower, *const upper = plan.upper, *const slot = plan.slot;
    for (int64_t v = end - 1; v >= begin; --v) {
      const int32_t k = visits[v];
      const Num weight = A::broadcast(c.at(slot[k]));
      const Span<S> a = state.at(int64_t(lower[k]) * lanes), b = state.at(int64_t(upper[k]) * lanes);
      const Span<S> difference = kept.at((v - begin) * lanes);
      Num sum = N::constant(T(0));
      for (int64_t l = 0; l < lanes; l += T::size) {
        Num x = A::get(a.at(l)), y = A::get(b.at(l));
        sum = sum + (x - y) * A::get(difference.at(l));
        mix(weight, x, y);
        A::set(a.at(l), x);
        A::set(b.at(l), y);
      }
      A::add_sum(of_c.at(slot[k]), sum);
    }
  }
  void columns_back_only(int64_t w) {
    const Span<S> c = tape[0].at(w), state = column;
    const int32_t *const lower = plan.lower, *const upper = plan.upper, *const slot = plan.slot;
    for (int64_t k = plan.comparators - 1; k >= 0; --k) {
      const Num weight = A::broadcast(c.at(slot[k]));
      const Span<S> a = state.at(int64_t(lower[k]) * lanes), b = state.at(int64_t(upper[k]) * lanes);
      for (int64_t l = 0; l < lanes; l += T::size) mix_at(a.at(l), b.at(l), weight);
    }
  }

  void columns_forward(int w) {
    const int64_t r = row + w, wanted = job.last - job.first;
    const int64_t m = job.what == What::matrix ? n : job.m;
    for (int64_t j = 0; j < m; j += lanes) {
      if (job.what == What::carry_transposed) {
        load_column(column, job.payload + r * job.payload_stride, nullptr, job.first, job.last, j, m);
        columns_back_only(w);
        store_column(column, job.result + r * n * m, 0, n, j, m, broken[w]);
        continue;
      }
      int64_t count;
      if (job.what == What::matrix) {
        load_identity(column, j);
        count = reach(j);
      } else {
        load_column(column, job.payload + r * job.payload_stride, nullptr, 0, n, j, m);
        count = reach(j);
      }
      columns_advance<false>(0, count, w);
      store_column(column, job.result + r * wanted * m, job.first, job.last, j, m, broken[w]);
    }
  }

  void gradient_by_columns() {
    advance<Tape::difference_and_weight, false>(0, plan.steps, 0);
    fill(tape[2], plan.packets * lanes);
    for (int w = 0; w < live; ++w) gradient_of_columns(w);
    fill(G, n * width);
    decision_back<false>(0, plan.steps, 0);
    store(G, job.of_scores, n, 1, 0, n);
  }

  void gradient_of_columns(int w) {
    const bool transposed = job.what == What::carry_transposed;
    const int64_t r = row + w, wanted = job.last - job.first;
    const int64_t m = job.what == What::matrix ? n : job.m;
    const S* payload = job.payload == nullptr ? nullptr : job.payload + r * job.payload_stride;
    const S* h_payload = job.h_payload == nullptr ? nullptr : job.h_payload + r * job.payload_stride;
    S* const of_forward = transposed ? job.of_payload : pass == Pass::curvature ? job.result : nullptr;
    S* const of_backward = !transposed ? job.of_payload : pass == Pass::curvature ? job.result : nullptr;
    for (int64_t j = 0; j < m; j += lanes) {
      int64_t count;
      if (transposed) {
        load_column(column, job.gradient + r * n * m, nullptr, 0, n, j, m);
        load_column(reverse_column, payload, h_payload, job.first, job.last, j, m);
        count = reach(j);
      } else {
        load_column(reverse_column, job.gradient + r * wanted * m, nullptr, job.first, job.last, j, m);
        if (job.what == What::matrix) {
          load_identity(column, j);
          count = reach(j);
        } else {
          load_column(column, payload, h_payload, 0, n, j, m);
          count = reach(j);
        }
      }
      const int64_t part = share(plan.comparators, column_segments);
      const int64_t parts = count == 0 ? 0 : share(count, part);
      for (int64_t i = 0; i < parts; ++i) {
        if (column_segments > 1) copy(checkpoints.at(i * n * lanes), column, n * lanes);
        columns_advance<true>(i * part, count < (i + 1) * part ? count : (i + 1) * part, w);
      }
      if (of_forward != nullptr)
        store_column(column, of_forward + r * wanted * m, job.first, job.last, j, m, broken[w]);
      for (int64_t i = parts - 1; i >= 0; --i) {
        const int64_t end = count < (i + 1) * part ? count : (i + 1) * part;
        if (i < parts - 1) {
          copy(column, checkpoints.at(i * n * lanes), n * lanes);
          columns_advance<true>(i * part, end, w);
        }
        columns_back(i * part, end, w);
      }
      if (of_backward != nullptr) store_column(reverse_column, of_backward + r * n * m, 0, n, j, m, broken[w]);
    }
  }
};

template <class T>
void run_forward(const Job<T>& job, int64_t tile, void* scratch) {
  Tile<T, false>(job, Pass::forward, tile, scratch).forward();
}
template <class T>
void run_gradient(const Job<T>& job, int64_t tile, void* scratch) {
  Tile<T, false>(job, Pass::gradient, tile, scratch).gradient();
}
template <class T>
void run_curvature(const Job<T>& job, int64_t tile, void* scratch) {
  Tile<T, true>(job, Pass::curvature, tile, scratch).gradient();
}
template <class T>
size_t scratch_bytes(const Job<T>& job, int which) {
  if (which == 2) return Tile<T, true>(job, Pass::curvature, 0, nullptr).bytes();
  return Tile<T, false>(job, which == 0 ? Pass::forward : Pass::gradient, 0, nullptr).bytes();
}

constexpr cpu::KernelSet set_of_kernels{
    {run_forward<float>, run_gradient<float>, run_curvature<float>, scratch_bytes<float>},
    {run_forward<double>, run_gradient<double>, run_curvature<double>, scratch_bytes<double>},
};

}  // namespace
}  // namespace DL_ISA

namespace cpu {
#define DL_CONCATENATE(a, b) a##b
#define DL_NAMED(a, b) DL_CONCATENATE(a, b)
const KernelSet* DL_NAMED(kernels_, DL_ISA)() { return &set_of_kernels; }
}  // namespace cpu
}  // namespace difflayers
