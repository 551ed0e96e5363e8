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
#include "tile.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

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

// What a forward pass writes to the tape.
enum class Tape { none, weight, adjoint, adjoint_and_steepness, difference, difference_and_weight };

// The passes. The gradient by a mixing weight is (R_a - R_b)(F_b - F_a) whichever of the two is the payload and
// which the incoming gradient, so one pass serves P V and its transpose.
template <class S, bool dual>
class Tile : TileState<S, dual> {
  using Base = TileState<S, dual>;
  using typename Base::A;
  using typename Base::N;
  using typename Base::Num;
  using typename Base::Sides;
  using typename Base::T;
  using Base::F, Base::G, Base::R, Base::X;
  using Base::broken, Base::job, Base::live, Base::n, Base::pass, Base::plan, Base::row, Base::width;
  using Base::checkpoints, Base::column, Base::column_segments, Base::differences, Base::reverse_column;
  using Base::steepness_planes, Base::steepness_sums, Base::tape;
  using Base::planes_of_number;
  using Base::copy, Base::fill, Base::load, Base::load_scores, Base::share, Base::store, Base::sweep;
  using Base::active, Base::visited, Base::visiting, Base::wanted;

 public:
  using Base::bytes;

  Tile(const Job<S>& job, Pass pass, int64_t tile, void* scratch) : Base(job, pass, tile, scratch) {}

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
    const T parameter(job.parameter), soft(Base::soft);
    const Span<S> first = tape[0], next = tape[1];
    this->template walk<1 + carry, false>(wires, begin, end, base, [=](Sides& x, Sides& f, int64_t lane, int64_t at) DL_INLINE {
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
      if constexpr (kind == Tape::difference_and_weight) A::set(next.at(at), recorded_weight(pair, t, soft));
      if constexpr (carry) {
        if constexpr (kind == Tape::difference) A::set(next.at(at), f.b - f.a);
        mix_forward(weight(pair, t, T(1)), N::value(weight(pair, t, soft)), f.a, f.b);
      }
    });
  }

  // R backwards through mixing weights on the tape.
  void mix_back(int64_t begin, int64_t end, int64_t base) {
    Span<S> wires[1] = {R};
    const Span<S> c = tape[0];
    this->template walk<1, true>(wires, begin, end, base, [=](Sides& r, Sides&, int64_t, int64_t at)
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
    this->template walk<1, true>(wires, begin, end, base, [=](Sides& g, Sides&, int64_t lane, int64_t at) DL_INLINE {
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
    const T parameter(job.parameter);
    const Span<S> ds = tape[0], differences_of_f = tape[1], of_weight = tape[2];
    const bool of_steepness = job.of_steepness_wanted;
    this->template walk<1 + fused, true>(wires, begin, end, base, [=](Sides& g, Sides& r, int64_t lane, int64_t at) DL_INLINE {
      const Pair<Num> pair = compare(A::get(ds.at(at)));
      const Terms<Num> t = relax<SwapType>(pair, A::get(steep.at(lane)), parameter);
      Num of_c;
      if constexpr (fused) {
        of_c = (r.a - r.b) * A::get(differences_of_f.at(at));
        mix(weight(pair, t, T(1)), r.a, r.b);
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
      load(R, job.payload + j, column_of(job.h_payload, j), job.payload_stride, m, job.first, job.last, job.h_payload_stride);
    } else {
      load(F, job.payload + j, column_of(job.h_payload, j), job.payload_stride, m, 0, n, job.h_payload_stride);
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
    const T soft(Base::soft);
    for (int64_t v = begin; v < end; ++v) {
      const int32_t k = visits[v];
      const Num weight = A::broadcast(c.at(slot[k])), relaxed = relaxed_part(weight);
      const T exact = exact_part(weight, soft);
      const Span<S> a = state.at(int64_t(lower[k]) * lanes), b = state.at(int64_t(upper[k]) * lanes);
      for (int64_t l = 0; l < lanes; l += T::size) {
        Num x = A::get(a.at(l)), y = A::get(b.at(l));
        if constexpr (keep) {
          A::set(difference.at(l), y - x);
          mix_forward(relaxed, exact, x, y);
        } else {
          mix(weight, x, y);
        }
        A::set(a.at(l), x);
        A::set(b.at(l), y);
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
      const Num weight = relaxed_part(A::broadcast(c.at(slot[k])));
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
    const S* h_payload = job.h_payload == nullptr ? nullptr : job.h_payload + r * job.h_payload_stride;
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
