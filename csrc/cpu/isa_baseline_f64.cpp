// The kernels for the baseline of the target, double.
#include "cpu/dispatch.h"
#include "cpu/prelude.h"

namespace fused_rnn::baseline {
#include "cpu/simd/baseline.h"
//
#include "cpu/kernel_table.h"

template const Kernels<double>& kernel_table<double>();
}  // namespace fused_rnn::baseline
