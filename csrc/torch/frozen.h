// Weights that are packed for the kernels once, not at every call.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "torch/problem.h"

namespace fused_rnn {

// The weights of a call as the kernels of one instruction set and type read them, for each layer
// and direction.
class PackedLayers {
 public:
  explicit PackedLayers(const Problem& p);

  // Whether these are the kernels that can read it.
  bool are_for(const void* kernels) const { return kernels == kernels_; }
  const std::byte* at(int64_t group) const { return blocks_[static_cast<size_t>(group)].get(); }

 private:
  struct Free {
    void operator()(std::byte* block) const { std::free(block); }
  };
  const void* kernels_ = nullptr;
  std::vector<std::unique_ptr<std::byte, Free>> blocks_;
};

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

 private:
  std::vector<at::Tensor> params_;
  std::vector<int64_t> versions_;  // of params_, that packed_ was made of
  std::shared_ptr<const PackedLayers> packed_;
};

}  // namespace fused_rnn
