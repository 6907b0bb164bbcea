// Memory of the tensors that the ops return.
#pragma once

#include <ATen/core/Tensor.h>

namespace fused_rnn {

// An uninitialized contiguous tensor on the CPU.
at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type);

}  // namespace fused_rnn
