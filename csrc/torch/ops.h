// The ops as C++ functions; library.cpp has their schemas.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <vector>

namespace fused_rnn {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalTensors = c10::List<std::optional<at::Tensor>>;
using Flags = c10::List<bool>;

std::vector<at::Tensor> sequence(const at::Tensor& input, at::TensorList states,
                                 at::TensorList params, const OptionalTensor& batch_sizes,
                                 std::string_view cell, int64_t num_layers, bool bidirectional);
std::vector<at::Tensor> sequence_train(const at::Tensor& input, at::TensorList states,
                                       at::TensorList params, const OptionalTensor& batch_sizes,
                                       std::string_view cell, int64_t num_layers,
                                       bool bidirectional);
std::vector<at::Tensor> sequence_backward(const OptionalTensors& grads, const at::Tensor& input,
                                          at::TensorList states, at::TensorList params,
                                          const OptionalTensor& batch_sizes,
                                          const at::Tensor& reserve, std::string_view cell,
                                          int64_t num_layers, bool bidirectional,
                                          const Flags& wanted);
std::vector<at::Tensor> cell(const at::Tensor& input, at::TensorList states, at::TensorList params,
                             std::string_view cell);
std::vector<at::Tensor> cell_train(const at::Tensor& input, at::TensorList states,
                                   at::TensorList params, std::string_view cell);
std::vector<at::Tensor> cell_backward(const OptionalTensors& grads, const at::Tensor& input,
                                      at::TensorList states, at::TensorList params,
                                      const at::Tensor& reserve, std::string_view cell,
                                      const Flags& wanted);

class SharedSteps;
class PackedLayers;
class Problem;
// The results of a call, not for training, from weights that were packed before.
std::vector<at::Tensor> infer(const Problem& p, const PackedLayers& packed);
// The gradients that are wanted of input, states and params, one after another. Of a step that has
// begun, `shared` gets what those of the params are made of.
std::vector<at::Tensor> backward(const Problem& p, const OptionalTensors& grads,
                                 const at::Tensor& reserve, const Flags& wanted,
                                 SharedSteps* shared = nullptr);

// Whether a call must be recorded for a backward pass, and the ops that record it (autograd.cpp).
bool needs_graph(const at::Tensor& input, at::TensorList states, at::TensorList params);
std::vector<at::Tensor> sequence_with_graph(const at::Tensor& input, at::TensorList states,
                                            at::TensorList params,
                                            const OptionalTensor& batch_sizes,
                                            std::string_view cell, int64_t num_layers,
                                            bool bidirectional);
std::vector<at::Tensor> cell_with_graph(const at::Tensor& input, at::TensorList states,
                                        at::TensorList params, std::string_view cell);

}  // namespace fused_rnn
