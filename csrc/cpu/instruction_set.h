// Which of the compiled instruction sets runs: the best that the processor has, or DIFFLAYERS_ISA.
#pragma once

#include <string>
#include <vector>

#include "choice_kernels.h"
#include "refine_kernels.h"
#include "scoring_kernels.h"
#include "sorting_kernels.h"
#include "subsets_kernels.h"

namespace difflayers::cpu {

struct InstructionSet {
  const char* name;  // "baseline", "avx2", "avx512"
  const KernelSet* kernels;
  const ChoiceKernels* choice;
  const SubsetKernels* subsets;
  const RefineKernels* refine;
  const ScoringKernels* scoring;
};

// Those compiled in that this processor can run, slowest first.
const std::vector<InstructionSet>& instruction_sets();

// The one in use, chosen at the first call. Throws when DIFFLAYERS_ISA names one that is not available.
const InstructionSet& instruction_set();

}  // namespace difflayers::cpu
