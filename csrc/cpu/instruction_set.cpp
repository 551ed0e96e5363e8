#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace difflayers::cpu {

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> available = [] {
    std::vector<InstructionSet> sets{
        {"baseline", kernels_baseline(), choice_kernels_baseline(), subset_kernels_baseline(), refine_kernels_baseline()}};
#ifdef DL_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) 
      sets.push_back({"avx2", kernels_avx2(), choice_kernels_avx2(), subset_kernels_avx2(), refine_kernels_avx2()});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
      sets.push_back({"avx512", kernels_avx512(), choice_kernels_avx512(), subset_kernels_avx512(), refine_kernels_avx512()});
#endif
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
