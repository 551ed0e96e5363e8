// How the CPU kernels see memory: arrays of numbers in planes, a scratch that is handed out in pieces, and the
// moves between them. Included by tile.h only, once per instruction set.
#pragma once

#include "pack.h"
#include "sorting_kernels.h"

#include "../swap.h"

namespace difflayers {
inline namespace DL_ISA {
namespace {

using cpu::lanes;

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
    Element* piece = reinterpret_cast<Element*>(reinterpret_cast<uintptr_t>(base) + used);
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

}  // namespace
}  // namespace DL_ISA
}  // namespace difflayers
