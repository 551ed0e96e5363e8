// A stable argsort of one row of floats: the projections' time is mostly that of sorting.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace difflayers::cpu {

template <class T>
struct SortItem {
  using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Key key;
  int32_t index;
};

// A signed integer that orders as x does, -0 equal to 0; NaN comes first or last.
template <class T>
typename SortItem<T>::Key sort_key(T x, bool descending) {
  using Key = typename SortItem<T>::Key;
  x += T(0);  // -0 + 0 = 0
  Key bits;
  std::memcpy(&bits, &x, sizeof bits);
  constexpr int sign = 8 * sizeof(Key) - 1;
  bits ^= (bits >> sign) & ~(Key(1) << sign);
  return descending ? ~bits : bits;
}

// order[i] = the index of the i-th; equal numbers keep their order. `items` is scratch for 2 n of them.
template <class T>
void argsort(const T* x, int32_t n, bool descending, int32_t* order, SortItem<T>* items) {
  using Key = typename SortItem<T>::Key;
  constexpr int32_t few = 64;
  if (n <= few) {  // counting who is smaller: no branches to mispredict, and the compiler vectorises it
    Key keys[few];
    for (int32_t i = 0; i < n; ++i) keys[i] = sort_key(x[i], descending);
    for (int32_t i = 0; i < n; ++i) {
      Key place = 0;
      for (int32_t j = 0; j < i; ++j) place += keys[j] <= keys[i];
      for (int32_t j = i + 1; j < n; ++j) place += keys[j] < keys[i];
      order[place] = i;
    }
    return;
  }
  // radix sort, the least significant byte first
  using Unsigned = std::make_unsigned_t<Key>;
  constexpr int digits = sizeof(Key);
  const auto digit = [](Key key, int d) {
    const Unsigned ordered = static_cast<Unsigned>(key) ^ (Unsigned(1) << (8 * digits - 1));
    return static_cast<uint8_t>(ordered >> (8 * d));
  };
  int32_t counts[digits][256] = {};
  SortItem<T>*from = items, *to = items + n;
  for (int32_t i = 0; i < n; ++i) {
    const Key key = sort_key(x[i], descending);
    from[i] = {key, i};
    for (int d = 0; d < digits; ++d) ++counts[d][digit(key, d)];
  }
  for (int d = 0; d < digits; ++d) {
    if (counts[d][digit(from[0].key, d)] == n) continue;  // the same digit in all
    int32_t place = 0;
    for (int32_t& count : counts[d]) place += std::exchange(count, place);
    for (int32_t i = 0; i < n; ++i) to[counts[d][digit(from[i].key, d)]++] = from[i];
    std::swap(from, to);
  }
  for (int32_t i = 0; i < n; ++i) order[i] = from[i].index;
}

}  // namespace difflayers::cpu
