// The same results through ATen's differentiable ops, for derivatives of higher order than the
// first. (The package's reference in Python would do as well, but a backward pass that calls Python
// needs an interpreter wherever it runs.) States that were not given are zeros.
#pragma once

#include "torch/ops.h"

namespace fused_rnn {

std::vector<at::Tensor> recompute_sequence(const at::Tensor& input, at::TensorList states,
                                           at::TensorList params, const OptionalTensor& batch_sizes,
                                           std::string_view cell, int64_t num_layers,
                                           bool bidirectional);
std::vector<at::Tensor> recompute_cell(const at::Tensor& input, at::TensorList states,
                                       at::TensorList params, std::string_view cell);

}  // namespace fused_rnn
