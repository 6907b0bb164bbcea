// The weights of a call as the kernels read them, for many calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "torch/problem.h"

namespace fused_rnn {

// What reads them: the forward pass, or the backward pass, with the gradient of the input or
// without.
enum class PackedFor { forward, backward, backward_without_input };

// The weights of each layer and direction as the kernels of one instruction set and type read them.
class PackedLayers {
 public:
  PackedLayers(const Problem& p, PackedFor use);

  // Whether these are the kernels that can read it.
  bool are_for(const void* kernels) const { return kernels == kernels_; }
  const std::byte* at(int64_t group) const {
    return static_cast<const std::byte*>(blocks_[static_cast<size_t>(group)].const_data_ptr());
  }

 private:
  const void* kernels_ = nullptr;
  std::vector<at::Tensor> blocks_;  // of bytes
};

}  // namespace fused_rnn
