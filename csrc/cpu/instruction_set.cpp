#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace difflayers::cpu {

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> available = [] {
    std::vector<InstructionSet> sets{
#define DL_KERNELS(name)                                                                              \
  {#name, kernels_##name(), choice_kernels_##name(), subset_kernels_##name(), refine_kernels_##name(), \
   scoring_kernels_##name()}
        DL_KERNELS(baseline)};
#ifdef DL_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(DL_KERNELS(avx2));
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
      sets.push_back(DL_KERNELS(avx512));
#endif
#undef DL_KERNELS
    return sets;
  }();
  return available;
}

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = [] {
    const char* forced = std::getenv("DIFFLAYERS_ISA");
    if (forced == nullptr || *forced == '\0') return instruction_sets().back();
    std::string names;
    for (const InstructionSet& set : instruction_sets()) {
      if (std::string(forced) == set.name) return set;
      names += std::string(names.empty() ? "" : ", ") + set.name;
    }
    throw std::runtime_error("difflayers: DIFFLAYERS_ISA must be one of " + names + " on this machine, got " + forced);
  }();
  return chosen;
}

}  // namespace difflayers::cpu
