#include "networks.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

namespace difflayers {
namespace {

void end_layer(Program& p) {
  if (p.comparators() > p.layer_begin.back()) p.layer_begin.push_back(p.comparators());
}

void add(Program& p, int64_t a, int64_t b) {
  p.lower.push_back(static_cast<int32_t>(a));
  p.upper.push_back(static_cast<int32_t>(b));
}

void odd_even(Program& p) {
  for (int64_t layer = 0; layer < p.n; ++layer) {
    for (int64_t a = layer % 2; a + 1 < p.n; a += 2) add(p, a, a + 1);
    end_layer(p);
  }
}

void bitonic(Program& p) {
  for (int64_t block = 2; block < 2 * p.n; block *= 2) {
    for (int64_t begin = 0; begin < p.n; begin += block)
      for (int64_t i = 0; i < block / 2; ++i)
        if (begin + block - 1 - i < p.n) add(p, begin + i, begin + block - 1 - i);
    end_layer(p);
    for (int64_t stride = block / 4; stride >= 1; stride /= 2) {
      for (int64_t begin = 0; begin < p.n; begin += 2 * stride)
        for (int64_t a = begin; a < begin + stride && a + stride < p.n; ++a) add(p, a, a + stride);
      end_layer(p);
    }
  }
}

void odd_even_merge(Program& p) {
  for (int64_t size = 1; size < p.n; size *= 2)
    for (int64_t stride = size; stride >= 1; stride /= 2) {
      for (int64_t begin = stride % size; begin + stride < p.n; begin += 2 * stride)
        for (int64_t a = begin; a < begin + stride && a + stride < p.n; ++a)
          if (a / (2 * size) == (a + stride) / (2 * size)) add(p, a, a + stride);
      end_layer(p);
    }
}

// "n:a-b,a-b,...": each comparator goes to the first layer in which both wires are free
void custom(Program& p, const std::string& spec) {
  std::vector<std::vector<std::pair<int64_t, int64_t>>> layers;
  std::vector<size_t> free(static_cast<size_t>(p.n), 0);
  const char* at = spec.c_str();
  char* end = nullptr;
  if (std::strtoll(at, &end, 10) != p.n || *end != ':')
    throw std::runtime_error("difflayers: network specification does not fit the input: " + spec.substr(0, 40));
  at = end + 1;
  const auto expect = [](bool good, const char* where) {
    if (good) return;
    throw std::runtime_error("difflayers: malformed network specification at '" + std::string(where).substr(0, 40) +
                             "'");
  };
  const auto wire = [&](const char* from) {
    expect('0' <= *from && *from <= '9', from);
    return static_cast<int64_t>(std::strtoll(from, &end, 10));
  };
  while (*at != '\0') {
    const int64_t a = wire(at);
    expect(*end == '-', end);
    const int64_t b = wire(end + 1);
    if (a < 0 || a >= b || b >= p.n) throw std::runtime_error("difflayers: comparator out of range");
    const size_t level = std::max(free[a], free[b]);
    if (level == layers.size()) layers.emplace_back();
    layers[level].emplace_back(a, b);
    free[a] = free[b] = level + 1;
    expect(*end == '\0' || (*end == ',' && end[1] != '\0'), end);
    at = *end == ',' ? end + 1 : end;
  }
  expect(at == spec.c_str() + spec.size(), "\\0");
  for (const auto& layer : layers) {
    for (const auto& [a, b] : layer) add(p, a, b);
    end_layer(p);
  }
}

Program pruned(const Program& full, int64_t first, int64_t last) {
  std::vector<char> needed(static_cast<size_t>(full.n), 0);
  for (int64_t i = first; i < last; ++i) needed[i] = 1;
  std::vector<char> live(static_cast<size_t>(full.comparators()), 0);
  for (int64_t k = full.comparators() - 1; k >= 0; --k) {
    live[k] = needed[full.lower[k]] | needed[full.upper[k]];
    if (live[k]) needed[full.lower[k]] = needed[full.upper[k]] = 1;
  }
  Program kept;
  kept.n = full.n;
  for (int64_t l = 0; l < full.layers(); ++l) {
    for (int64_t k = full.layer_begin[l]; k < full.layer_begin[l + 1]; ++k)
      if (live[k]) add(kept, full.lower[k], full.upper[k]);
    end_layer(kept);
  }
  return kept;
}

// About how many comparators a network by name has.
double size_of(const std::string& spec, int64_t n) {
  const double wires = static_cast<double>(n), depth = std::ceil(std::log2(std::max(wires, 2.0)));
  return spec == "odd_even" ? wires * (wires - 1) / 2 : wires * depth * (depth + 1) / 4;
}

Program build(const std::string& spec, int64_t n, int64_t first, int64_t last) {
  constexpr double largest = 1 << 29;  // 4 GiB of tables; refused before they are made
  if (spec.find(':') == std::string::npos && size_of(spec, n) > largest)
    throw std::runtime_error("difflayers: the network " + spec + " on " + std::to_string(n) +
                             " wires has too many comparators for its tables");
  Program p;
  p.n = n;
  if (spec == "odd_even")
    odd_even(p);
  else if (spec == "bitonic")
    bitonic(p);
  else if (spec == "odd_even_merge")
    odd_even_merge(p);
  else
    custom(p, spec);
  return first == 0 && last == n ? p : pruned(p, first, last);
}

}  // namespace

std::shared_ptr<const Program> program(const std::string& spec, int64_t n, int64_t first, int64_t last) {
  using Key = std::tuple<std::string, int64_t, int64_t, int64_t>;
  // Leaked on purpose: a call on another thread may outlive static destructors.
  static auto& cache = *new std::map<Key, std::shared_ptr<const Program>>;
  static std::mutex mutex;
  static int64_t cached = 0;
  constexpr int64_t limit = 1 << 25;  // comparators; 256 MiB of tables

  Key key{spec, n, first, last};
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = cache.find(key);
  if (found == cache.end()) {
    auto made = std::make_shared<const Program>(build(spec, n, first, last));
    if (cached + made->comparators() > limit) {
      cache.clear();  // calls in flight keep theirs alive
      cached = 0;
    }
    cached += made->comparators();
    found = cache.emplace(std::move(key), std::move(made)).first;
  }
  return found->second;
}

}  // namespace difflayers
