// The CPU kernels of the ops: allocate what they return and run the layers.

#include "torch/ops.h"

#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "torch/frozen.h"
#include "torch/kernel_data.h"
#include "torch/memory.h"
#include "torch/problem.h"
#include "torch/shared_steps.h"
#include "torch/threads.h"

namespace fused_rnn {
namespace {

// A part of the reserve that holds sums.
template <typename E>
auto* sums_at(E* reserve, int64_t offset) {
  using T = sum_t<std::remove_const_t<E>>;
  return reinterpret_cast<std::conditional_t<std::is_const_v<E>, const T, T>*>(reserve + offset);
}

// To the type of the call's tensors.
void round(std::vector<at::Tensor>& results, size_t count, const Problem& p) {
  for (size_t i = 0; i < count; ++i) {
    if (results[i].scalar_type() != p.dtype) results[i] = results[i].to(p.dtype);
  }
}

// The part of a state [L*D, B, size] that belongs to a layer and direction; null stays null.
template <typename T>
T* slice(T* state, int64_t group, int64_t B, int64_t size) {
  return state == nullptr ? nullptr : state + group * B * size;
}

template <typename E>
void run_forward(const Problem& p, const Kernels<E>& run, const at::Tensor& output,
                 const at::Tensor* hn, const at::Tensor* cn, const at::Tensor* reserve,
                 const PackedLayers* packed) {
  using T = sum_t<E>;
  const int64_t O = p.hidden();
  const int64_t width = p.D * O;
  c10::SmallVector<ForwardArgs<E>, 2> all;
  E* const kept = reserve != nullptr ? mutable_data<E>(*reserve) : nullptr;
  // Outputs of inner layers are kept for the backward pass or, without one, dropped in turn.
  at::Tensor inner[2];
  const E* x = data<E>(p.input());
  for (int64_t layer = 0; layer < p.L; ++layer) {
    E* out = nullptr;
    if (kept != nullptr) {
      out = kept + p.output_offset(layer);
    } else if (layer + 1 == p.L) {
      out = mutable_data<E>(output);
    } else {
      at::Tensor& buffer = inner[layer % 2];
      if (!buffer.defined()) buffer = empty({p.N, width}, p.operand);
      out = mutable_data<E>(buffer);
    }
    for (int64_t direction = 0; direction < p.D; ++direction) {
      const int64_t group = layer * p.D + direction;
      ForwardArgs<E>& args = all.emplace_back();
      args.shape = p.shape(layer, direction);
      // Another thread may have chosen another instruction set since.
      if (packed != nullptr && packed->are_for(&run)) {
        args.packed = packed->at(group);
      } else {
        args.weights = layer_weights<E>(p, group);
      }
      args.x = x;
      args.x_stride = p.input_size(layer);
      args.h0 = slice(data<E>(p.state(0)), group, p.B, O);
      args.out = out + direction * O;
      args.out_stride = width;
      if (hn != nullptr) args.hn = slice(mutable_data<E>(*hn), group, p.B, O);
      if (p.traits.has_state) {
        args.c0 = slice(data<T>(p.state(1)), group, p.B, p.H);
        args.cn = slice(mutable_data<T>(*cn), group, p.B, p.H);
      }
      if (kept != nullptr) {
        if (p.traits.saved > 0) args.gates = sums_at(kept, p.gates_offset(layer, direction));
        if (p.traits.has_state) args.cells = sums_at(kept, p.cells_offset(layer, direction));
      }
    }
    x = out;
  }
  run.forward(p.kind, all.data(), static_cast<int>(p.L), static_cast<int>(p.D), torch_threads());
  if (kept != nullptr) {
    const E* const last = kept + p.output_offset(p.L - 1);
    std::copy(last, last + p.N * width, mutable_data<E>(output));
  }
}

std::vector<at::Tensor> forward(const Problem& p, bool train,
                                const PackedLayers* packed = nullptr) {
  std::vector<at::Tensor> results;
  results.reserve(4);
  results.push_back(empty(p.output_sizes(), p.operand));
  // A cell's new h is its output.
  if (!p.single_cell) results.push_back(empty(p.state_sizes(0), p.operand));
  if (p.traits.has_state) results.push_back(empty(p.state_sizes(1), p.compute));
  if (train) results.push_back(empty({p.reserve_size()}, p.operand));
  const at::Tensor* hn = p.single_cell ? nullptr : &results[1];
  const at::Tensor* cn = p.traits.has_state ? &results[p.single_cell ? 1 : 2] : nullptr;
  const at::Tensor* reserve = train ? &results.back() : nullptr;
  with_kernels(p,
               [&](const auto& run) { run_forward(p, run, results[0], hn, cn, reserve, packed); });
  round(results, results.size() - (train ? 1 : 0), p);
  return results;
}

// What a backward call is given and what it fills. Gradients that are not wanted are undefined.
struct Gradients {
  const at::Tensor& reserve;
  at::Tensor out, hn, cn;            // given; undefined: zero
  int64_t out_stride;                // from row to row of `out`: 0 where one row is that of all
  at::Tensor input;                  // filled
  std::array<at::Tensor, 2> states;  // filled
  std::vector<at::Tensor> params;    // filled
  SharedSteps* shared;               // gets what is left of params, or null
};

// Whether all rows of a tensor, its last dimension, are the same memory, as they are in the
// gradient of a sum or a mean. Made contiguous it would be as large as the output.
bool repeats_one_row(const at::Tensor& tensor) {
  if (tensor.is_contiguous()) return false;  // also where there are no elements
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != 0) return false;
  }
  return true;
}

// Whether anything is wanted of a layer or of those below it.
bool wanted_up_to(const Problem& p, const Gradients& g, int64_t layer) {
  if (g.input.defined() || g.states[0].defined() || g.states[1].defined()) return true;
  const int64_t count = (layer + 1) * p.D * p.params_of_layer();
  for (int64_t i = 0; i < count; ++i) {
    if (g.params[static_cast<size_t>(i)].defined()) return true;
    if (g.shared != nullptr && g.shared->wants(i)) return true;
  }
  return false;
}

template <typename E>
void run_backward(const Problem& p, const Kernels<E>& run, Gradients& g) {
  using T = sum_t<E>;
  const int64_t O = p.hidden();
  const int64_t width = p.D * O;
  c10::SmallVector<BackwardArgs<E>, 2> all;
  const E* const kept = data<E>(g.reserve);
  at::Tensor between[2];  // gradients of the outputs of inner layers
  const T* grad_out = data<T>(g.out);
  int64_t grad_out_stride = g.out_stride;
  for (int64_t layer = p.L - 1; layer >= 0 && wanted_up_to(p, g, layer); --layer) {
    T* grad_x = nullptr;
    if (layer == 0) {
      grad_x = mutable_data<T>(g.input);
    } else if (wanted_up_to(p, g, layer - 1)) {
      at::Tensor& buffer = between[layer % 2];
      if (!buffer.defined()) buffer = empty({p.N, width}, p.compute);
      grad_x = mutable_data<T>(buffer);
    }
    for (int64_t direction = 0; direction < p.D; ++direction) {
      const int64_t group = layer * p.D + direction;
      BackwardArgs<E>& args = all.emplace_back();
      args.shape = p.shape(layer, direction);
      if (g.shared != nullptr) {
        args.deltas = g.shared->deltas<E>(group);
        args.packed = g.shared->packed(&run, group);
      }
      if (args.packed == nullptr) args.weights = layer_weights<E>(p, group);
      args.x = layer == 0 ? data<E>(p.input()) : kept + p.output_offset(layer - 1);
      args.x_stride = p.input_size(layer);
      args.h0 = slice(data<E>(p.state(0)), group, p.B, O);
      args.out = kept + p.output_offset(layer) + direction * O;
      args.out_stride = width;
      if (p.traits.saved > 0) args.gates = sums_at(kept, p.gates_offset(layer, direction));
      args.grad_out = grad_out != nullptr ? grad_out + direction * O : nullptr;
      args.grad_out_stride = grad_out_stride;
      args.grad_hn = slice(data<T>(g.hn), group, p.B, O);
      args.grad_x = grad_x;
      args.add_to_grad_x = direction > 0 && grad_x != nullptr;
      args.grad_h0 = slice(mutable_data<T>(g.states[0]), group, p.B, O);
      if (p.traits.has_state) {
        args.c0 = slice(data<T>(p.state(1)), group, p.B, p.H);
        args.cells = sums_at(kept, p.cells_offset(layer, direction));
        args.grad_cn = slice(data<T>(g.cn), group, p.B, p.H);
        args.grad_c0 = slice(mutable_data<T>(g.states[1]), group, p.B, p.H);
      }
      size_t i = static_cast<size_t>(group * p.params_of_layer());
      args.grad_w_ih = mutable_data<T>(g.params[i++]);
      args.grad_w_hh = mutable_data<T>(g.params[i++]);
      if (p.bias) {
        args.grad_b_ih = mutable_data<T>(g.params[i++]);
        args.grad_b_hh = mutable_data<T>(g.params[i++]);
      }
      if (p.P > 0) args.grad_w_hr = mutable_data<T>(g.params[i++]);
    }
    grad_out = grad_x;
    grad_out_stride = width;
  }
  const int layers = static_cast<int>(static_cast<int64_t>(all.size()) / p.D);
  if (layers > 0) run.backward(p.kind, all.data(), layers, static_cast<int>(p.D), torch_threads());
  if (g.shared == nullptr) return;
  for (int i = 0; i < layers; ++i) {
    for (int64_t direction = 0; direction < p.D; ++direction) {
      g.shared->keep((p.L - 1 - i) * p.D + direction,
                     all[static_cast<size_t>(i * p.D + direction)]);
    }
  }
  g.shared->end_step();
}

}  // namespace

std::vector<at::Tensor> backward(const Problem& p, const OptionalTensors& grads,
                                 const at::Tensor& reserve, const Flags& wanted,
                                 SharedSteps* shared) {
  const size_t results = (p.single_cell ? 1 : 2) + (p.traits.has_state ? 1 : 0);
  TORCH_CHECK(grads.size() == results, "Expected ", results, " gradients of outputs, got ",
              grads.size());
  const size_t states = p.state(0) == nullptr ? 0 : p.traits.has_state ? 2 : 1;
  const size_t params = static_cast<size_t>(p.L * p.D * p.params_of_layer());
  TORCH_CHECK(wanted.size() == 1 + states + params, "Expected wanted to have ", 1 + states + params,
              " entries (input, states, parameters), got ", wanted.size());
  // Another type is that of a forward call that ran on another instruction set.
  p.check(reserve, {p.reserve_size()}, p.operand, "reserve");
  const auto reserve_contiguous = reserve.expect_contiguous();

  Gradients g{*reserve_contiguous, {}, {}, {}, p.D * p.hidden(), {}, {}, {}, shared};
  const auto given = [&](size_t i, at::IntArrayRef sizes, const char* name) {
    const std::optional<at::Tensor> grad = grads.get(i);
    if (!grad.has_value() || !grad->defined()) return at::Tensor();
    p.check(*grad, sizes, p.dtype, name);
    // The dispatcher resolves these two kinds of lazy tensors in all arguments but lists of
    // optional ones.
    if (grad->_is_zerotensor()) return at::Tensor();
    at::Tensor rows = *grad;
    if (i == 0 && repeats_one_row(rows)) {
      rows = rows.as_strided({rows.size(-1)}, {rows.stride(-1)});
      g.out_stride = 0;
    }
    return rows.resolve_neg().to(p.compute).contiguous();
  };
  size_t next = 0;
  g.out = given(next++, p.output_sizes(), "gradient of output");
  if (!p.single_cell) g.hn = given(next++, p.state_sizes(0), "gradient of hn");
  if (p.traits.has_state) g.cn = given(next++, p.state_sizes(1), "gradient of cn");

  next = 0;
  std::vector<at::Tensor> filled;
  const auto fill = [&](at::IntArrayRef sizes) {
    if (!wanted[next++]) return at::Tensor();
    filled.push_back(empty(sizes, p.compute));
    return filled.back();
  };
  g.input = fill(p.input().sizes());
  for (size_t i = 0; i < states; ++i) g.states[i] = fill(p.state_sizes(i));
  for (size_t i = 0; i < params; ++i) {
    // Parameters that nothing asks for are not converted.
    const bool want = wanted[next];
    g.params.push_back(fill(want ? p.param(static_cast<int64_t>(i)).sizes() : at::IntArrayRef()));
  }

  with_kernels(p, [&](const auto& run) { run_backward(p, run, g); });
  round(filled, filled.size(), p);
  return filled;
}

std::vector<at::Tensor> sequence(const at::Tensor& input, at::TensorList states,
                                 at::TensorList params, const OptionalTensor& batch_sizes,
                                 std::string_view cell, int64_t num_layers, bool bidirectional) {
  return forward(
      Problem::sequence(input, states, params, batch_sizes, cell, num_layers, bidirectional),
      false);
}

std::vector<at::Tensor> sequence_train(const at::Tensor& input, at::TensorList states,
                                       at::TensorList params, const OptionalTensor& batch_sizes,
                                       std::string_view cell, int64_t num_layers,
                                       bool bidirectional) {
  return forward(
      Problem::sequence(input, states, params, batch_sizes, cell, num_layers, bidirectional), true);
}

std::vector<at::Tensor> sequence_backward(const OptionalTensors& grads, const at::Tensor& input,
                                          at::TensorList states, at::TensorList params,
                                          const OptionalTensor& batch_sizes,
                                          const at::Tensor& reserve, std::string_view cell,
                                          int64_t num_layers, bool bidirectional,
                                          const Flags& wanted) {
  return backward(
      Problem::sequence(input, states, params, batch_sizes, cell, num_layers, bidirectional), grads,
      reserve, wanted);
}

std::vector<at::Tensor> cell(const at::Tensor& input, at::TensorList states, at::TensorList params,
                             std::string_view cell) {
  return forward(Problem::cell(input, states, params, cell), false);
}

std::vector<at::Tensor> cell_train(const at::Tensor& input, at::TensorList states,
                                   at::TensorList params, std::string_view cell) {
  return forward(Problem::cell(input, states, params, cell), true);
}

std::vector<at::Tensor> cell_backward(const OptionalTensors& grads, const at::Tensor& input,
                                      at::TensorList states, at::TensorList params,
                                      const at::Tensor& reserve, std::string_view cell,
                                      const Flags& wanted) {
  return backward(Problem::cell(input, states, params, cell), grads, reserve, wanted);
}

std::vector<at::Tensor> infer(const Problem& p, const PackedLayers& packed) {
  return forward(p, false, &packed);
}

TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("sequence", sequence);
  m.impl("sequence_train", sequence_train);
  m.impl("sequence_backward", sequence_backward);
  m.impl("cell", cell);
  m.impl("cell_train", cell_train);
  m.impl("cell_backward", cell_backward);
}

}  // namespace fused_rnn
