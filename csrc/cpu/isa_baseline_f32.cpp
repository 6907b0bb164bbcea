// The kernels for the baseline of the target, float.
#include "cpu/dispatch.h"
#include "cpu/prelude.h"

namespace fused_rnn::baseline {
#include "cpu/simd/baseline.h"
//
#include "cpu/kernel_table.h"

template const Kernels<float>& kernel_table<float>();
}  // namespace fused_rnn::baseline
