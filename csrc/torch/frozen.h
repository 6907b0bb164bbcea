// The weights of a layer or cell that do not change any more, packed once for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "torch/problem.h"

namespace fused_rnn {

// Weights as the kernels of one instruction set and type read them, for each layer and direction.
class PackedLayers {
 public:
  template <typename E>
  PackedLayers(const Problem& p, const Kernels<E>& run);

  const std::byte* at(int64_t group) const { return blocks_[static_cast<size_t>(group)].get(); }

 private:
  struct Free {
    void operator()(std::byte* block) const { std::free(block); }
  };
  std::vector<std::unique_ptr<std::byte, Free>> blocks_;
};

// Whoever makes one of these gives up changing the tensors: nothing would notice.
class Frozen {
 public:
  explicit Frozen(std::vector<at::Tensor> params) : params_(std::move(params)) {}

  // As the ops take them.
  at::TensorList params() const { return params_; }

  // For a call that was made of params(): packed now, unless they are there from an earlier call
  // with the same kernels. Any number of threads may ask.
  template <typename E>
  std::shared_ptr<const PackedLayers> packed(const Problem& p, const Kernels<E>& run) const;

 private:
  std::vector<at::Tensor> params_;
  mutable std::mutex mutex_;
  mutable const void* packed_for_ = nullptr;  // the kernels
  mutable std::shared_ptr<const PackedLayers> packed_;
};

}  // namespace fused_rnn
