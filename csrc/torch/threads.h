// torch's threads for the kernels.
#pragma once

#include "cpu/kernels.h"

namespace fused_rnn {

// As many as torch.get_num_threads(), from the OpenMP pool that torch computes with; one inside
// another parallel region.
Threads torch_threads();

}  // namespace fused_rnn
