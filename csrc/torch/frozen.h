// Weights that are packed for the kernels once, not at every call.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "torch/ops.h"
#include "torch/packed_layers.h"
#include "torch/problem.h"

namespace fused_rnn {

// The weights of a frozen module (frozen.py). Only through such modules are they changed, where
// others share them, and only by operators in place, which raise a tensor's version.
class Frozen {
 public:
  explicit Frozen(std::vector<at::Tensor> params) : params_(std::move(params)) {}

  // As the ops take them.
  const std::vector<at::Tensor>& params() const { return params_; }

  // For a call that was made of params(): packed now, unless an earlier call with the same kernels
  // has done so and they have not changed since. To be called with Python's lock, which guards this
  // object: a lock of its own could be left locked in a child that another thread forks.
  std::shared_ptr<const PackedLayers> packed(const Problem& p);

  // What the ops of these names give, from the packed weights; nothing where the call is not plain,
  // is to be recorded for a backward pass or does not fit, which the ops have the words for.
  std::optional<std::vector<at::Tensor>> sequence(const at::Tensor& input,
                                                  const std::vector<at::Tensor>& states,
                                                  const OptionalTensor& batch_sizes,
                                                  std::string_view cell, int64_t num_layers,
                                                  bool bidirectional);
  std::optional<std::vector<at::Tensor>> cell(const at::Tensor& input,
                                              const std::vector<at::Tensor>& states,
                                              std::string_view cell);

 private:
  template <typename MakeProblem>
  std::optional<std::vector<at::Tensor>> infer(const at::Tensor& input,
                                               const std::vector<at::Tensor>& states,
                                               const MakeProblem& make);

  std::vector<at::Tensor> params_;
  std::vector<int64_t> versions_;  // of params_, that packed_ was made of
  std::shared_ptr<const PackedLayers> packed_;
};

}  // namespace fused_rnn
