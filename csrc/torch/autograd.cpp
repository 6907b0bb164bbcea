// Autograd of the ops: first derivatives by the fused backward ops, higher ones by recomputing the
// layer through ATen's differentiable ops.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "torch/ops.h"
#include "torch/recompute.h"

namespace fused_rnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

std::vector<at::Tensor> call_sequence(const at::Tensor& input, at::TensorList states,
                                      at::TensorList params, const OptionalTensor& batch_sizes,
                                      std::string_view cell, int64_t num_layers,
                                      bool bidirectional) {
  static const auto op = find<decltype(sequence)>("fused_rnn::sequence");
  return op.call(input, states, params, batch_sizes, cell, num_layers, bidirectional);
}

std::vector<at::Tensor> call_cell(const at::Tensor& input, at::TensorList states,
                                  at::TensorList params, std::string_view name) {
  static const auto op = find<decltype(cell)>("fused_rnn::cell");
  return op.call(input, states, params, name);
}

// The tensors of a call as saved: input, states, params, batch_sizes, reserve.
struct Saved {
  variable_list all;
  size_t states;

  const at::Tensor& input() const { return all[0]; }
  at::TensorList state_list() const { return at::TensorList(all).slice(1, states); }
  at::TensorList param_list() const {
    return at::TensorList(all).slice(1 + states, all.size() - states - 3);
  }
  OptionalTensor batch_sizes() const {
    const at::Tensor& sizes = all[all.size() - 2];
    return sizes.defined() ? OptionalTensor(sizes) : std::nullopt;
  }
  const at::Tensor& reserve() const { return all[all.size() - 1]; }
};

void save(AutogradContext* ctx, const at::Tensor& input, at::TensorList states,
          at::TensorList params, const OptionalTensor& batch_sizes, std::string_view cell,
          const at::Tensor& reserve) {
  variable_list all;
  all.reserve(states.size() + params.size() + 3);
  all.push_back(input);
  all.insert(all.end(), states.begin(), states.end());
  all.insert(all.end(), params.begin(), params.end());
  all.push_back(batch_sizes.value_or(at::Tensor()));
  all.push_back(reserve);
  ctx->save_for_backward(std::move(all));
  ctx->saved_data["states"] = static_cast<int64_t>(states.size());
  ctx->saved_data["cell"] = std::string(cell);
  ctx->set_materialize_grads(false);
}

Saved saved_of(AutogradContext* ctx) {
  return {ctx->get_saved_variables(), static_cast<size_t>(ctx->saved_data["states"].toInt())};
}

OptionalTensors optional(const variable_list& grads) {
  OptionalTensors list;
  list.reserve(grads.size());
  for (const at::Tensor& grad : grads)
    list.push_back(grad.defined() ? OptionalTensor(grad) : std::nullopt);
  return list;
}

// Which of input, states and params want a gradient. They are the first edges of the node.
Flags wanted_of(AutogradContext* ctx, const Saved& saved) {
  const size_t count = 1 + saved.states + saved.param_list().size();
  Flags wanted;
  wanted.reserve(count);
  for (size_t i = 0; i < count; ++i) wanted.push_back(ctx->needs_input_grad(i));
  return wanted;
}

// One gradient for each argument of forward: the wanted ones in their places, the rest undefined.
variable_list in_places(const Flags& wanted, const variable_list& grads, size_t other_arguments) {
  variable_list all(wanted.size() + other_arguments);
  size_t next = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i]) all[i] = grads[next++];
  }
  return all;
}

// Gradients that can be differentiated again: `recompute(input, states, params)` gives the results
// through differentiable ops. The arguments are aliases, so that where one depends on another
// (an input made from the weights) only the direct dependence is followed here; the engine follows
// the rest.
template <typename Recompute>
variable_list differentiable_gradients(const Saved& saved, const Flags& wanted,
                                       const variable_list& grads, Recompute&& recompute) {
  variable_list arguments;
  variable_list of;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const at::Tensor& argument = saved.all[i];
    arguments.push_back(wanted[i] ? argument.view_as(argument) : argument);
    if (wanted[i]) of.push_back(arguments.back());
  }
  const at::TensorList all(arguments);
  const variable_list results =
      recompute(arguments[0], all.slice(1, saved.states), all.slice(1 + saved.states));
  variable_list outputs;
  variable_list grad_outputs;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
    outputs.push_back(results[i]);
    grad_outputs.push_back(grads[i]);
  }
  if (outputs.empty()) return variable_list(of.size());
  return torch::autograd::grad(outputs, of, grad_outputs, /*retain_graph=*/true,
                               /*create_graph=*/true, /*allow_unused=*/true);
}

class SequenceFunction : public torch::autograd::Function<SequenceFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, at::TensorList states,
                               at::TensorList params, const OptionalTensor& batch_sizes,
                               std::string_view cell, int64_t num_layers, bool bidirectional) {
    static const auto op = find<decltype(sequence_train)>("fused_rnn::sequence_train");
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto results = op.call(input, states, params, batch_sizes, cell, num_layers, bidirectional);
    ctx->saved_data["num_layers"] = num_layers;
    ctx->saved_data["bidirectional"] = bidirectional;
    save(ctx, input, states, params, batch_sizes, cell, results.back());
    results.pop_back();
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Saved saved = saved_of(ctx);
    const Flags wanted = wanted_of(ctx, saved);
    const std::string cell = ctx->saved_data["cell"].toStringRef();
    const int64_t num_layers = ctx->saved_data["num_layers"].toInt();
    const bool bidirectional = ctx->saved_data["bidirectional"].toBool();
    constexpr size_t kOtherArguments = 4;  // batch_sizes, cell, num_layers, bidirectional
    if (at::GradMode::is_enabled()) {
      const auto recompute = [&](const at::Tensor& input, at::TensorList states,
                                 at::TensorList params) {
        return recompute_sequence(input, states, params, saved.batch_sizes(), cell, num_layers,
                                  bidirectional);
      };
      return in_places(wanted, differentiable_gradients(saved, wanted, grads, recompute),
                       kOtherArguments);
    }
    static const auto op = find<decltype(sequence_backward)>("fused_rnn::sequence_backward");
    return in_places(
        wanted,
        op.call(optional(grads), saved.input(), saved.state_list(), saved.param_list(),
                saved.batch_sizes(), saved.reserve(), cell, num_layers, bidirectional, wanted),
        kOtherArguments);
  }
};

class CellFunction : public torch::autograd::Function<CellFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, at::TensorList states,
                               at::TensorList params, std::string_view cell) {
    static const auto op = find<decltype(cell_train)>("fused_rnn::cell_train");
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto results = op.call(input, states, params, cell);
    save(ctx, input, states, params, std::nullopt, cell, results.back());
    results.pop_back();
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Saved saved = saved_of(ctx);
    const Flags wanted = wanted_of(ctx, saved);
    const std::string cell = ctx->saved_data["cell"].toStringRef();
    constexpr size_t kOtherArguments = 1;  // cell
    if (at::GradMode::is_enabled()) {
      const auto recompute = [&](const at::Tensor& input, at::TensorList states,
                                 at::TensorList params) {
        return recompute_cell(input, states, params, cell);
      };
      return in_places(wanted, differentiable_gradients(saved, wanted, grads, recompute),
                       kOtherArguments);
    }
    static const auto op = find<decltype(cell_backward)>("fused_rnn::cell_backward");
    return in_places(wanted,
                     op.call(optional(grads), saved.input(), saved.state_list(), saved.param_list(),
                             saved.reserve(), cell, wanted),
                     kOtherArguments);
  }
};

std::vector<at::Tensor> sequence_autograd(const at::Tensor& input, at::TensorList states,
                                          at::TensorList params, const OptionalTensor& batch_sizes,
                                          std::string_view cell, int64_t num_layers,
                                          bool bidirectional) {
  if (needs_graph(input, states, params)) {
    return sequence_with_graph(input, states, params, batch_sizes, cell, num_layers, bidirectional);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_sequence(input, states, params, batch_sizes, cell, num_layers, bidirectional);
}

std::vector<at::Tensor> cell_autograd(const at::Tensor& input, at::TensorList states,
                                      at::TensorList params, std::string_view cell) {
  if (needs_graph(input, states, params)) {
    return cell_with_graph(input, states, params, cell);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_cell(input, states, params, cell);
}

}  // namespace

bool needs_graph(const at::Tensor& input, at::TensorList states, at::TensorList params) {
  if (!at::GradMode::is_enabled()) return false;
  const auto requires_grad = [](const at::Tensor& t) { return t.requires_grad(); };
  return input.requires_grad() || std::any_of(states.begin(), states.end(), requires_grad) ||
         std::any_of(params.begin(), params.end(), requires_grad);
}

std::vector<at::Tensor> sequence_with_graph(const at::Tensor& input, at::TensorList states,
                                            at::TensorList params,
                                            const OptionalTensor& batch_sizes,
                                            std::string_view cell, int64_t num_layers,
                                            bool bidirectional) {
  return SequenceFunction::apply(input, states, params, batch_sizes, cell, num_layers,
                                 bidirectional);
}

std::vector<at::Tensor> cell_with_graph(const at::Tensor& input, at::TensorList states,
                                        at::TensorList params, std::string_view cell) {
  return CellFunction::apply(input, states, params, cell);
}

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, m) {
  m.impl("sequence", sequence_autograd);
  m.impl("cell", cell_autograd);
  // A derivative of these would be silently missing: asked for one, they refuse aloud.
  for (const char* name : {"sequence_train", "sequence_backward", "cell_train", "cell_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn
