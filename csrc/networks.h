// Sorting networks as tables of comparators; the same three generators as difflayers/sorting/networks.py,
// which a test compares with these for every n up to 130.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace difflayers {

struct Program {
  int64_t n = 0;
  // comparator k puts the smaller value on wire lower[k], the larger on upper[k]; layer l holds the
  // comparators layer_begin[l] .. layer_begin[l + 1] - 1, which share no wire
  std::vector<int32_t> lower, upper;
  std::vector<int64_t> layer_begin{0};

  int64_t comparators() const { return static_cast<int64_t>(lower.size()); }
  int64_t layers() const { return static_cast<int64_t>(layer_begin.size()) - 1; }
};

// The network `spec` on n wires without the comparators that no output wire in [first, last) depends on.
// spec: "odd_even", "bitonic", "odd_even_merge", or "n:a-b,a-b,..." for a table in order of action.
// Cached; throws std::runtime_error for a specification that it cannot read.
std::shared_ptr<const Program> program(const std::string& spec, int64_t n, int64_t first, int64_t last);

}  // namespace difflayers
