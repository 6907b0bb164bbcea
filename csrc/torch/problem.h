// The arguments of an op, checked: what every check of the ops is, in one place.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>
#include <string_view>
#include <vector>

#include "cpu/kernels.h"

namespace fused_rnn {

// One call: a stack of L layers in D directions over a dense or packed sequence, or a single cell,
// which is one layer and one step. Refers to the tensors it was made from; holds copies of those
// that were not contiguous, or are not of the type that the kernels read. float16 is computed with
// as float32 and rounded once in the end, and so is bfloat16 where the machine has no fast
// instructions for its products; where it has, only biases and cell states are converted.
class Problem {
 public:
  // A sequence: input [T, B, I], or [N, I] with batch_sizes [T].
  static Problem sequence(const at::Tensor& input, at::TensorList states, at::TensorList params,
                          const std::optional<at::Tensor>& batch_sizes, std::string_view cell,
                          int64_t num_layers, bool bidirectional);
  // A cell: input [B, I], states [B, H].
  static Problem cell(const at::Tensor& input, at::TensorList states, at::TensorList params,
                      std::string_view cell);

  CellKind kind;
  CellTraits traits;
  at::ScalarType dtype;             // of the tensors
  at::ScalarType compute;           // of sums, cell states and gradients: T of the kernels
  const Kernels<bfloat16>* narrow;  // that run the call, or null
  at::ScalarType operand;           // of x, h and the weights: E of the kernels
  int64_t L = 1, D = 1, T = 1, B = 0, N = 0, I = 0, H = 0, P = 0;
  bool bias = false;
  bool single_cell = false;
  const int64_t* batch_sizes = nullptr;

  int64_t hidden() const { return P > 0 ? P : H; }
  int64_t input_size(int64_t layer) const { return layer == 0 ? I : D * hidden(); }
  SequenceShape shape(int64_t layer, int64_t direction) const {
    return {T, B, input_size(layer), H, P, batch_sizes, direction == 1};
  }
  int64_t params_of_layer() const { return 2 + (bias ? 2 : 0) + (P > 0 ? 1 : 0); }

  const at::Tensor& input() const { return *input_; }
  // h0 (0) or c0 (1) as given; null where states were not given.
  const at::Tensor* state(size_t i) const { return i < states_.size() ? &*states_[i] : nullptr; }
  // As the kernels take it: made when it is first asked for, since calls with packed weights never
  // do. Not to be asked for by several threads at the same time.
  const at::Tensor& param(int64_t i) const;

  std::vector<int64_t> output_sizes() const;
  std::vector<int64_t> state_sizes(size_t i) const;

  // What a forward call keeps for the backward call, one flat tensor of the type of operands:
  // the outputs of all layers [L, N, D*O], a copy of the last one's too, since the caller may
  // change the result in place,
  // then, as sums, for each layer and direction the gates [N, saved, H] and the cell states [N, H].
  // Offsets are of elements of the tensor.
  int64_t reserve_size() const { return gates_offset(L, 0); }
  int64_t output_offset(int64_t layer) const { return layer * N * D * hidden(); }
  int64_t gates_offset(int64_t layer, int64_t direction) const {
    const int64_t outputs = (output_offset(L) + elements() - 1) / elements();
    return (outputs + (layer * D + direction) * N * H * saved()) * elements();
  }
  int64_t cells_offset(int64_t layer, int64_t direction) const {
    return gates_offset(layer, direction) + N * H * traits.saved * elements();
  }

  // Checks that a tensor of the backward call has these sizes and this dtype, and is on the CPU.
  void check(const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType type,
             const char* name) const;

 private:
  Problem(const at::Tensor& input, at::TensorList states, at::TensorList params,
          std::string_view cell, int64_t num_layers, bool bidirectional);

  // Elements of the reserve that a sum takes.
  int64_t elements() const { return operand == at::kBFloat16 ? 2 : 1; }
  int64_t saved() const { return traits.saved + (traits.has_state ? 1 : 0); }
  void check_params(at::TensorList params);
  void check_states(at::TensorList states);
  void check_total_size() const;
  // A tensor as the kernels take it: contiguous and of this type.
  static c10::MaybeOwned<at::Tensor> for_kernels(const at::Tensor& tensor, at::ScalarType type);

  c10::MaybeOwned<at::Tensor> input_;
  c10::SmallVector<c10::MaybeOwned<at::Tensor>, 2> states_;
  mutable c10::SmallVector<c10::MaybeOwned<at::Tensor>, 16> params_;
  c10::MaybeOwned<at::Tensor> batch_sizes_;
};

}  // namespace fused_rnn
