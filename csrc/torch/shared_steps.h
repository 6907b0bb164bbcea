// What the steps of a loop share in a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "torch/kernel_data.h"
#include "torch/packed_layers.h"
#include "torch/problem.h"

namespace fused_rnn {

// The steps are calls of the same weights, one step each. By itself a step would give gradients as
// large as the weights, from a few rows, for autograd to add up. Instead it leaves its rows here:
// x, h_prev and the deltas, which give those gradients as one product of the rows of many steps.
// And the weights that dh and dx need are packed once for all steps but the first few.
class SharedSteps {
 public:
  // Of the params that are wanted, in the order of the ops.
  SharedSteps(const Problem& p, std::vector<bool> wanted);

  // Whether rows of this call can be kept beside those that are there. Not whether its weights are
  // the same: that they have the same edges is what makes steps share this.
  bool fits(const Problem& p) const;
  bool wants(int64_t param) const { return wanted_[static_cast<size_t>(param)]; }

  // One more step: makes room for its rows and, if its params are those of two steps before, packs
  // them; for the gradient of the input only if this step has one.
  void begin_step(const Problem& p, at::TensorList params, bool input_gradient);
  // Where its deltas are to be written, for a layer and direction.
  template <typename E>
  E* deltas(int64_t group) const {
    const Rows& kept = rows_[static_cast<size_t>(group)];
    return mutable_data<E>(kept.deltas) + count_ * kept.deltas.size(1);
  }
  // The step's weights as these kernels read them, or null.
  const std::byte* packed(const void* kernels, int64_t group) const {
    return reads_packed_ && packed_->are_for(kernels) ? packed_->at(group) : nullptr;
  }
  // What its call of a layer and direction was made of.
  template <typename E>
  void keep(int64_t group, const BackwardArgs<E>& args);
  void end_step() { count_ += rows_of_step_; }

  // The gradients of all steps; undefined where they are not wanted.
  std::vector<at::Tensor> take();

 private:
  // Of one layer and direction: [capacity, I or H or delta_stride].
  struct Rows {
    at::Tensor x, h_prev, deltas;
  };

  int64_t input_size(int64_t group) const { return group < D_ ? I_ : D_ * H_; }
  void allocate(int64_t capacity);
  // Adds what the rows give to the gradients and forgets the rows.
  void multiply();
  template <typename E>
  void multiply(const Kernels<E>& run);

  CellKind kind_;
  at::ScalarType dtype_, compute_, operand_;
  const Kernels<bfloat16>* narrow_;
  int64_t D_, I_, H_, groups_, params_of_group_;
  std::vector<bool> wanted_;
  int64_t capacity_ = 0;
  int64_t count_ = 0;         // of rows
  int64_t rows_of_step_ = 0;  // that is being kept
  // The params of the first step, how many steps have had the same, and those packed. Steps have
  // others where hooks make a copy of what each saves, and their values too may then be others.
  std::vector<at::Tensor> params_;
  std::vector<int64_t> versions_;
  int steps_ = 0;
  std::unique_ptr<PackedLayers> packed_;
  bool packed_for_input_ = false;
  bool reads_packed_ = false;  // the step that is being kept
  std::vector<Rows> rows_;
  std::vector<at::Tensor> gradients_;  // of params, as far as multiplied
};

template <typename E>
void SharedSteps::keep(int64_t group, const BackwardArgs<E>& args) {
  const Rows& kept = rows_[static_cast<size_t>(group)];
  const int64_t I = args.shape.I;
  E* const x = mutable_data<E>(kept.x) + count_ * I;
  for (int64_t row = 0; row < rows_of_step_; ++row) {
    const E* const from = args.x + row * args.x_stride;
    std::copy(from, from + I, x + row * I);
  }
  E* const h_prev = mutable_data<E>(kept.h_prev) + count_ * H_;
  if (args.h0 != nullptr) {
    std::copy(args.h0, args.h0 + rows_of_step_ * H_, h_prev);
  } else {
    std::fill(h_prev, h_prev + rows_of_step_ * H_, E{});
  }
}

}  // namespace fused_rnn
