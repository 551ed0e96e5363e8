// The values of short rows, a thread per row: launched by values.cu for jobs that fit (register_row.h).
#pragma once

#include <cuda_runtime.h>

#include "../block.h"

namespace difflayers::cuda {

void run_values(const block::Job<float>& job, bool backwards, cudaStream_t stream);

}  // namespace difflayers::cuda
