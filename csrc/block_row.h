// One row through the network and back, by a team of threads: see block.h.
#pragma once

#include "block.h"

namespace difflayers {
inline namespace DL_ISA {
namespace block {

// The state is the scores and a payload F that travel forward, and their adjoint and a payload R that travel
// backward. The gradient by a mixing weight is (R_a - R_b)(F_b - F_a) whichever of the two is the payload and
// which the incoming gradient, so one pass serves P V and its transpose. The comparators of a layer share no
// wire, so each belongs to one lane, which loops over the columns: no sum needs atomics, and results do not
// depend on timing.
template <class Num, class Executor>
class Row {
  using N = NumberOf<Num>;
  using T = typename N::Scalar;
  static constexpr bool dual = N::planes == 2;

 public:
  DL_TEAM Row(const Job<T>& job, const Memory<Num>& memory, const Executor& team, int64_t row)
      : job(job), memory(memory), team(team), row(row), soft(job.hard ? 0 : 1),
        payload(at_row(job.payload, job.payload_stride)), h_payload(at_row(job.h_payload, job.h_payload_stride)),
        s(steepness_of(row)) {}

  DL_TEAM void forward() {
    if (broken()) return store_nan();
    load_scores();
    if (job.what == What::values) {
      advance<Record::nothing>();
      return store(memory.wires, job.result + row * job.wanted(), job.first, job.last);
    }
    advance<Record::weight>();
    for (int64_t j = 0; j < job.columns(); j += job.tile) {
      const int32_t filled = filled_from(j);
      if (job.what == What::carry_transposed) {
        load_columns(memory.reverse_columns, payload, nullptr, job.first, job.last, j, filled);
        columns_back<false>(j, filled);
        store_columns(memory.reverse_columns, job.result + row * job.n * job.m, 0, job.n, j, filled);
      } else {
        load_forward(j, filled);
        columns_advance<false>(filled);
        store_columns(memory.forward_columns, job.result + row * job.wanted() * job.columns(), job.first, job.last,
                      j, filled);
      }
    }
  }

  // The derivatives by scores, steepness and payload; on duals, their derivatives in the direction h.
  DL_TEAM void gradient() {
    if (broken()) return store_nan();
    load_scores();
    if (job.of_steepness != nullptr)
      team.each(team.lanes(), [&](int32_t i, int32_t) { memory.partial.set(i, zero()); });
    if (job.what == What::values)
      gradient_of_values();
    else
      gradient_of_columns();
    store(memory.wires, job.of_scores + row * job.n, 0, job.n);
    if (job.of_steepness != nullptr) store_steepness();
  }

 private:
  enum class Record { nothing, weight, adjoint, decision };

  const Job<T>& job;
  const Memory<Num>& memory;
  const Executor& team;
  const int64_t row;
  const T soft;
  const T *const payload, *const h_payload;
  const Num s;

  static DL_TEAM Num zero() { return N::constant(T(0)); }
  DL_TEAM const T* at_row(const T* base, int64_t stride) const {
    return base == nullptr ? nullptr : base + row * stride;
  }
  DL_TEAM Num steepness_of(int64_t row) const {
    const T value = job.steepness == nullptr ? job.constant : job.steepness[row];
    if constexpr (dual)
      return {value, job.h_steepness == nullptr ? T(0) : job.h_steepness[row]};
    else
      return value;
  }
  static DL_TEAM Num with_tangent(T value, const T* tangent, int64_t i) {
    if constexpr (dual)
      return {value, tangent == nullptr ? T(0) : tangent[i]};
    else
      return value;
  }
  // what the caller wants of a number: the value, or the tangent in the second derivative
  static DL_TEAM T wanted_of(Num x) {
    if constexpr (dual)
      return x.t;
    else
      return x;
  }

  DL_TEAM bool broken() const {
    const T* scores = job.scores + row * job.n;
    return team.any(job.n, [&](int32_t i) { return scores[i] != scores[i]; });
  }
  DL_TEAM void fill_nan(T* to, int64_t count) {
    if (to == nullptr) return;
    to += row * count;
    team.each(count, [&](int64_t i, int32_t) { to[i] = T(NAN); });
  }
  // a row with a NaN is NaN in everything that depends on it
  DL_TEAM void store_nan() {
    const int64_t columns = job.what == What::values ? 1 : job.columns();
    const bool transposed = job.what == What::carry_transposed;
    fill_nan(job.result, (transposed ? job.n : job.wanted()) * columns);
    fill_nan(job.of_scores, job.n);
    fill_nan(job.of_steepness, 1);
    fill_nan(job.of_payload, (transposed ? job.wanted() : job.n) * columns);
  }

  // wires [begin, end) from memory, zeros elsewhere
  DL_TEAM void load(const Array<Num>& to, const T* from, const T* tangent, int32_t begin, int32_t end) {
    team.each(job.n, [&](int32_t i, int32_t) {
      const bool inside = begin <= i && i < end;
      to.set(i, inside ? with_tangent(from[i - begin], tangent, i - begin) : zero());
    });
  }
  DL_TEAM void store(const Array<Num>& from, T* to, int32_t begin, int32_t end) {
    team.each(end - begin, [&](int32_t i, int32_t) { to[i] = wanted_of(from.get(begin + i)); });
  }
  DL_TEAM void load_scores() {
    load(memory.wires, job.scores + row * job.n, at_row(dual ? job.h_scores : nullptr, job.n), 0, job.n);
  }

  DL_TEAM int32_t filled_from(int64_t j) const {
    return job.columns() - j < job.tile ? static_cast<int32_t>(job.columns() - j) : job.tile;
  }
  // Columns j .. j + filled - 1 of a matrix [end - begin, columns] onto wires [begin, end), zeros elsewhere.
  DL_TEAM void load_columns(const Array<Num>& to, const T* from, const T* tangent, int32_t begin, int32_t end,
                            int64_t j, int32_t filled) {
    team.each(job.n * filled, [&](int32_t q, int32_t) {
      const int32_t i = q / filled, column = q - i * filled;
      const int64_t source = (i - begin) * job.columns() + j + column;
      const bool inside = begin <= i && i < end;
      to.set(column * memory.stride + i, inside ? with_tangent(from[source], tangent, source) : zero());
    });
  }
  DL_TEAM void load_identity(const Array<Num>& to, int64_t j, int32_t filled) {
    team.each(job.n * filled, [&](int32_t q, int32_t) {
      const int32_t column = q / job.n, i = q - column * job.n;
      to.set(column * memory.stride + i, N::constant(T(i == j + column ? 1 : 0)));
    });
  }
  DL_TEAM void load_forward(int64_t j, int32_t filled) {
    if (job.what == What::matrix)
      load_identity(memory.forward_columns, j, filled);
    else
      load_columns(memory.forward_columns, payload, dual ? h_payload : nullptr, 0, job.n, j, filled);
  }
  DL_TEAM void store_columns(const Array<Num>& from, T* to, int32_t begin, int32_t end, int64_t j, int32_t filled) {
    team.each((end - begin) * filled, [&](int32_t q, int32_t) {
      const int32_t i = q / filled, column = q - i * filled;
      to[i * job.columns() + j + column] = wanted_of(from.get(column * memory.stride + begin + i));
    });
  }

  // f(k, wires, lane) for every comparator k, layer by layer, with a barrier after each
  template <class F>
  DL_TEAM void walk(F f) {
    const Table& table = job.table;
    for (int32_t l = 0; l < table.layers; ++l) visit(table.layer_begin[l], table.layer_begin[l + 1], f);
  }
  template <class F>
  DL_TEAM void walk_back(F f) {
    const Table& table = job.table;
    for (int32_t l = table.layers - 1; l >= 0; --l) visit(table.layer_begin[l], table.layer_begin[l + 1], f);
  }
  template <class F>
  DL_TEAM void visit(int32_t begin, int32_t end, F& f) {
    const Comparator* const layer = job.table.comparators + begin;
    team.each(end - begin, [&](int32_t i, int32_t lane) { f(begin + i, layer[i], lane); });
  }

  // The scores through the network.
  template <Record record>
  DL_TEAM void advance() {
    with_swap(job.swap, [&](auto swap) { this->template advance_with<decltype(swap), record>(); });
  }
  template <class SwapType, Record record>
  DL_TEAM void advance_with() {
    const Array<Num> wires = memory.wires, first = memory.first_tape, second = memory.second_tape;
    const T parameter = job.parameter;
    const bool of_steepness = job.of_steepness != nullptr;
    walk([&](int32_t k, Comparator at, int32_t) {
      const Num a = wires.get(at.lower), b = wires.get(at.upper), d = b - a;
      const Pair<Num> pair = compare(d);
      const Terms<Num> t = relax<SwapType>(pair, s, parameter);
      const Num moved = shift(pair, t, s, soft);
      wires.set(at.lower, select(pair.exchanged, b, a) + moved);
      wires.set(at.upper, select(pair.exchanged, a, b) - moved);
      if constexpr (record == Record::adjoint) {
        first.set(k, signed_e(pair, t));
        if (of_steepness) second.set(k, pair.r * t.ws);
      }
      if constexpr (record == Record::decision) first.set(k, d);
      if constexpr (record == Record::weight) second.set(k, weight(pair, t, soft));
      if constexpr (record == Record::decision) second.set(k, recorded_weight(pair, t, soft));
    });
  }

  DL_TEAM void gradient_of_values() {
    advance<Record::adjoint>();
    if (job.pass == Pass::curvature) store(memory.wires, job.result + row * job.wanted(), job.first, job.last);
    load(memory.wires, job.gradient + row * job.wanted(), nullptr, job.first, job.last);
    const Array<Num> wires = memory.wires, es = memory.first_tape, moved_by_s = memory.second_tape;
    const bool of_steepness = job.of_steepness != nullptr;
    walk_back([&](int32_t k, Comparator at, int32_t lane) {
      Num u = wires.get(at.lower), v = wires.get(at.upper);
      if (of_steepness) add_partial(lane, (u - v) * moved_by_s.get(k));
      mix_lean(es.get(k), u, v);
      wires.set(at.lower, u);
      wires.set(at.upper, v);
    });
  }

  DL_TEAM void gradient_of_columns() {
    const bool transposed = job.what == What::carry_transposed;
    const int64_t at_outputs = row * job.wanted() * job.columns(), at_inputs = row * job.n * job.columns();
    T* const of_result = job.pass == Pass::curvature ? job.result : nullptr;
    T* const of_forward = transposed ? job.of_payload : of_result;
    T* const of_reverse = transposed ? of_result : job.of_payload;
    advance<Record::decision>();
    for (int64_t j = 0; j < job.columns(); j += job.tile) {
      const int32_t filled = filled_from(j);
      if (transposed) {
        load_columns(memory.forward_columns, job.gradient + at_inputs, nullptr, 0, job.n, j, filled);
        load_columns(memory.reverse_columns, payload, dual ? h_payload : nullptr, job.first, job.last, j, filled);
      } else {
        load_forward(j, filled);
        load_columns(memory.reverse_columns, job.gradient + at_outputs, nullptr, job.first, job.last, j, filled);
      }
      columns_advance<true>(filled);
      if (of_forward != nullptr)
        store_columns(memory.forward_columns, of_forward + at_outputs, job.first, job.last, j, filled);
      columns_back<true>(j, filled);
      if (of_reverse != nullptr)
        store_columns(memory.reverse_columns, of_reverse + at_inputs, 0, job.n, j, filled);
    }
    decision_back();
  }

  // F forward through the mixing weights, its differences on the tape if told.
  template <bool keep>
  DL_TEAM void columns_advance(int32_t filled) {
    const Array<Num> columns = memory.forward_columns, weights = memory.second_tape;
    const Array<Num> differences = memory.differences;
    const int64_t stride = memory.stride, count = job.table.count;
    walk([&](int32_t k, Comparator at, int32_t) {
      const Num c = weights.get(k), relaxed = relaxed_part(c);
      const T exact = exact_part(c, soft);
      for (int32_t column = 0; column < filled; ++column) {
        const int64_t base = column * stride;
        Num u = columns.get(base + at.lower), v = columns.get(base + at.upper);
        if constexpr (keep) {
          differences.set(column * count + k, v - u);
          mix_forward(relaxed, exact, u, v);
        } else {
          mix(c, u, v);
        }
        columns.set(base + at.lower, u);
        columns.set(base + at.upper, v);
      }
    });
  }

  // R backward through the mixing weights; adds (R_a - R_b)(F_b - F_a) to the gradient by each weight if told.
  template <bool keep>
  DL_TEAM void columns_back(int64_t j, int32_t filled) {
    const Array<Num> columns = memory.reverse_columns, weights = memory.second_tape;
    const Array<Num> differences = memory.differences, of_weight = memory.of_weight;
    const int64_t stride = memory.stride, count = job.table.count;
    walk_back([&](int32_t k, Comparator at, int32_t) {
      const Num c = keep ? relaxed_part(weights.get(k)) : weights.get(k);
      Num sum = zero();
      for (int32_t column = 0; column < filled; ++column) {
        const int64_t base = column * stride;
        Num u = columns.get(base + at.lower), v = columns.get(base + at.upper);
        if constexpr (keep) sum = sum + (u - v) * differences.get(column * count + k);
        mix(c, u, v);
        columns.set(base + at.lower, u);
        columns.set(base + at.upper, v);
      }
      if constexpr (keep) of_weight.set(k, j == 0 ? sum : of_weight.get(k) + sum);
    });
  }

  // From the gradient by each weight to the gradient by the scores, through d on the tape.
  DL_TEAM void decision_back() {
    team.each(job.n, [&](int32_t i, int32_t) { memory.wires.set(i, zero()); });
    with_swap(job.swap, [&](auto swap) { this->template decision_back_with<decltype(swap)>(); });
  }
  template <class SwapType>
  DL_TEAM void decision_back_with() {
    const Array<Num> wires = memory.wires, ds = memory.first_tape, of_weight = memory.of_weight;
    const T parameter = job.parameter;
    const bool of_steepness = job.of_steepness != nullptr;
    walk_back([&](int32_t k, Comparator at, int32_t lane) {
      const Pair<Num> pair = compare(ds.get(k));
      const Terms<Num> t = relax<SwapType>(pair, s, parameter);
      const Num of_c = of_weight.get(k);
      Num u = wires.get(at.lower), v = wires.get(at.upper);
      if (of_steepness) add_partial(lane, of_c * weight_by_s(pair, t) + (u - v) * (pair.r * t.ws));
      mix_lean(signed_e(pair, t), u, v);
      const Num of_d = of_c * weight_by_d(pair, t);
      wires.set(at.lower, u - of_d);
      wires.set(at.upper, v + of_d);
    });
  }

  DL_TEAM void add_partial(int32_t lane, Num x) { memory.partial.set(lane, memory.partial.get(lane) + x); }

  // the lanes' shares in a fixed order
  DL_TEAM void store_steepness() {
    const Array<Num> partial = memory.partial;
    for (int32_t count = team.lanes(); count > 1;) {
      const int32_t half = (count + 1) / 2;
      team.each(count - half, [&](int32_t i, int32_t) { partial.set(i, partial.get(i) + partial.get(half + i)); });
      count = half;
    }
    team.each(1, [&](int32_t, int32_t) { job.of_steepness[row] = wanted_of(partial.get(0)); });
  }
};

// The pass of the job on one row; forward passes run on plain numbers, second derivatives on duals.
template <class Num, bool backwards, class T, class Executor>
DL_TEAM void run_row(const Job<T>& job, const Memory<Num>& memory, const Executor& team, int64_t row) {
  Row<Num, Executor> worker(job, memory, team, row);
  if constexpr (backwards)
    worker.gradient();
  else
    worker.forward();
}

}  // namespace block
}  // namespace DL_ISA
}  // namespace difflayers
