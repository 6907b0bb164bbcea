// Autograd of the ops: first derivatives by the fused backward ops, higher ones by recomputing the
// layer through ATen's differentiable ops.

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>

#include "torch/make_node.h"
#include "torch/ops.h"
#include "torch/problem.h"
#include "torch/recompute.h"
#include "torch/surroundings.h"
#include "torch/weights_node.h"

namespace fused_rnn {
namespace {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
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

// What an op is told besides its tensors. The name of a cell fits into a string without allocating.
struct Setting {
  std::string cell;
  bool single_cell = false;
  int64_t num_layers = 1;
  bool bidirectional = false;
};

// Forward, also giving the reserve. A plain call needs no dispatcher.
std::vector<at::Tensor> train(const Setting& setting, const at::Tensor& input,
                              at::TensorList states, at::TensorList params,
                              const OptionalTensor& batch_sizes, bool plain) {
  static const auto cell_op = find<decltype(cell_train)>("fused_rnn::cell_train");
  static const auto sequence_op = find<decltype(sequence_train)>("fused_rnn::sequence_train");
  const auto& [cell, single_cell, num_layers, bidirectional] = setting;
  if (single_cell) {
    return plain ? cell_train(input, states, params, cell)
                 : cell_op.call(input, states, params, cell);
  }
  return plain ? sequence_train(input, states, params, batch_sizes, cell, num_layers, bidirectional)
               : sequence_op.call(input, states, params, batch_sizes, cell, num_layers,
                                  bidirectional);
}

// The tensors of a call as saved: input, states, params, reserve and, of a packed call,
// batch_sizes.
struct Saved {
  variable_list all;
  size_t states, params;

  const at::Tensor& input() const { return all[0]; }
  at::TensorList state_list() const { return at::TensorList(all).slice(1, states); }
  at::TensorList param_list() const { return at::TensorList(all).slice(1 + states, params); }
  const at::Tensor& reserve() const { return all[1 + states + params]; }
  OptionalTensor batch_sizes() const {
    const size_t i = 2 + states + params;
    return i < all.size() ? OptionalTensor(all[i]) : std::nullopt;
  }
};

Problem problem_of(const Setting& setting, const Saved& saved) {
  const auto& [cell, single_cell, num_layers, bidirectional] = setting;
  return single_cell ? Problem::cell(saved.input(), saved.state_list(), saved.param_list(), cell)
                     : Problem::sequence(saved.input(), saved.state_list(), saved.param_list(),
                                         saved.batch_sizes(), cell, num_layers, bidirectional);
}

bool is_plain(const Saved& saved, const variable_list& grads) {
  const Surroundings around;
  return around.plain() && around.plain(grads) && around.plain(saved.all);
}

// As the ops take them.
OptionalTensors optional(const variable_list& grads) {
  OptionalTensors given;
  given.reserve(grads.size());
  for (const at::Tensor& grad : grads)
    given.push_back(grad.defined() ? OptionalTensor(grad) : std::nullopt);
  return given;
}

Flags flags(const std::vector<bool>& wanted) {
  Flags result;
  result.reserve(wanted.size());
  for (const bool want : wanted) result.push_back(want);
  return result;
}

// Backward by the kernels: the gradients that are wanted, one after another.
std::vector<at::Tensor> fused_gradients(const Setting& setting, const Saved& saved,
                                        const variable_list& grads,
                                        const std::vector<bool>& wanted) {
  static const auto cell_op = find<decltype(cell_backward)>("fused_rnn::cell_backward");
  static const auto sequence_op = find<decltype(sequence_backward)>("fused_rnn::sequence_backward");
  if (is_plain(saved, grads)) {
    return backward(problem_of(setting, saved), optional(grads), saved.reserve(), flags(wanted));
  }
  const auto& [cell, single_cell, num_layers, bidirectional] = setting;
  return single_cell ? cell_op.call(optional(grads), saved.input(), saved.state_list(),
                                    saved.param_list(), saved.reserve(), cell, flags(wanted))
                     : sequence_op.call(optional(grads), saved.input(), saved.state_list(),
                                        saved.param_list(), saved.batch_sizes(), saved.reserve(),
                                        cell, num_layers, bidirectional, flags(wanted));
}

// Gradients that can be differentiated again: `recompute(input, states, params)` gives the results
// through differentiable ops. The arguments are aliases, so that where one depends on another
// (an input made from the weights) only the direct dependence is followed here; the engine follows
// the rest.
template <typename Recompute>
variable_list differentiable_gradients(const Saved& saved, const std::vector<bool>& wanted,
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

// A gradient for each of input, states and params, undefined where it is not wanted.
variable_list spread(std::vector<at::Tensor>&& found, const std::vector<bool>& wanted) {
  variable_list all(wanted.size());
  size_t next = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i]) all[i] = std::move(found[next++]);
  }
  return all;
}

// Backward of a call.
variable_list gradients(const Setting& setting, const Saved& saved, const variable_list& grads,
                        const std::vector<bool>& wanted) {
  if (!at::GradMode::is_enabled())
    return spread(fused_gradients(setting, saved, grads, wanted), wanted);
  const auto recompute = [&](const at::Tensor& input, at::TensorList states,
                             at::TensorList params) {
    return setting.single_cell
               ? recompute_cell(input, states, params, setting.cell)
               : recompute_sequence(input, states, params, saved.batch_sizes(), setting.cell,
                                    setting.num_layers, setting.bidirectional);
  };
  return spread(differentiable_gradients(saved, wanted, grads, recompute), wanted);
}

// A call in the graph, like the nodes that torch generates for its own ops: torch's Function for
// extensions adds 3 us to a step. Edges: input, states, params; those of params may lead to the
// node that the steps of a loop share.
class CallNode final : public Node {
 public:
  void set_edges(edge_list&& edges, WeightsPointer weights) {
    set_next_edges(std::move(edges));
    weights_ = std::move(weights);
  }

  // None of these is a result of the node itself, which is why none is saved as its output.
  void save(const Setting& setting, const at::Tensor& input, at::TensorList states,
            at::TensorList params, const OptionalTensor& batch_sizes, const at::Tensor& reserve) {
    setting_ = setting;
    states_ = states.size();
    params_ = params.size();
    saved_.reserve(3 + states_ + params_);
    const auto keep = [this](const at::Tensor& tensor) {
      saved_.emplace_back(tensor, /*is_output=*/false);
    };
    keep(input);
    for (const at::Tensor& state : states) keep(state);
    for (const at::Tensor& param : params) keep(param);
    keep(reserve);
    if (batch_sizes) keep(*batch_sizes);
  }

  std::string name() const override {
    return setting_.single_cell ? "FusedCellBackward" : "FusedSequenceBackward";
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Saved saved = unpacked();
    std::vector<bool> wanted = wanted_of_engine();
    if (weights_ == nullptr) return gradients(setting_, saved, grads, wanted);

    // The engine runs the node of the weights for all of them, or for none.
    const size_t first_param = 1 + states_;
    bool any = false;
    for (size_t i = 0; i < params_; ++i) {
      const bool want = wanted[first_param + i] && weights_->task_should_compute_output(i);
      wanted[first_param + i] = want;
      any = any || want;
    }
    if (any && may_leave_rows(saved, grads)) {
      const Problem p = problem_of(setting_, saved);
      if (SharedSteps* const steps = weights_->steps(p)) {
        std::fill(wanted.begin() + static_cast<ptrdiff_t>(first_param), wanted.end(), false);
        steps->begin_step(p, saved.param_list(), wanted[0]);
        return spread(backward(p, optional(grads), saved.reserve(), flags(wanted), steps), wanted);
      }
    }
    return gradients(setting_, saved, grads, wanted);
  }

  // The node in the place of params, or null.
  const WeightsPointer& weights() const { return weights_; }

  // The edges of the params themselves.
  at::ArrayRef<Edge> edges_of_params() const {
    if (weights_ != nullptr) return weights_->next_edges();
    return at::ArrayRef<Edge>(next_edges()).slice(1 + states_);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

  // Compiled autograd: the node becomes a call of `gradients` between the graphs it compiles.
  void compiled_args(torch::autograd::CompiledNodeArgs& args) const override {
    args.collect(setting_.cell);
    args.collect(setting_.single_cell);
    args.collect(setting_.num_layers);
    args.collect(setting_.bidirectional);
    args.collect(static_cast<int64_t>(states_));
    args.collect(saved_, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    swap.before(saved_);
    compiled::PackedArgs packed;
    packed.pack(setting_.cell);
    packed.pack(setting_.single_cell);
    packed.pack(setting_.num_layers);
    packed.pack(setting_.bidirectional);
    packed.pack(states_);
    packed.pack(params_);
    packed.pack(unpacked().all);
    packed.pack(wanted_of_engine());
    const std::vector<c10::IValue>& args = packed.vec();
    std::vector<at::TypePtr> types;
    for (const c10::IValue& argument : args) types.push_back(argument.type());
    const auto& compiler = compiled::getPyCompilerInterface();
    const std::string function = compiler->bind_function(
        swap.get_py_compiler(), name(), apply_packed, types, /*is_custom_function=*/true,
        /*is_traceable=*/false);
    variable_list results = compiler->call_function(
        swap.get_py_compiler(), "apply_functional", function, grads, args,
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
    swap.after(saved_);
    return results;
  }

 private:
  Saved unpacked() const {
    Saved saved{{}, states_, params_};
    saved.all.reserve(saved_.size());
    for (const SavedVariable& one : saved_) saved.all.push_back(one.unpack());
    return saved;
  }

  std::vector<bool> wanted_of_engine() const {
    std::vector<bool> wanted(num_outputs());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = task_should_compute_output(i);
    return wanted;
  }

  // Whether nobody but the engine asks for the gradients, which only has them added up: no hook
  // that sees them, nobody who looks for the node that a NaN comes from, nor a hook, of this node
  // or of another, that calls this node as a function while a pass runs.
  bool may_leave_rows(const Saved& saved, const variable_list& grads) {
    return !at::GradMode::is_enabled() && !torch::autograd::AnomalyMode::is_enabled() &&
           torch::autograd::get_current_node().get() == this && tensor_pre_hooks().empty() &&
           pre_hooks().empty() && post_hooks().empty() && is_plain(saved, grads);
  }

  static variable_list apply_packed(const variable_list& grads,
                                    const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs packed(args);
    Setting setting;
    setting.cell = packed.unpack<std::string>();
    setting.single_cell = packed.unpack<bool>();
    setting.num_layers = packed.unpack<int64_t>();
    setting.bidirectional = packed.unpack<bool>();
    Saved saved;
    saved.states = packed.unpack<size_t>();
    saved.params = packed.unpack<size_t>();
    saved.all = packed.unpack<variable_list>();
    return gradients(setting, saved, grads, packed.unpack<std::vector<bool>>());
  }

  Setting setting_;
  size_t states_ = 0, params_ = 0;
  std::vector<SavedVariable> saved_;
  WeightsPointer weights_;
};

Edge edge_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return torch::autograd::impl::gradient_edge(tensor);
}

// The call that a state comes from, if no more than a few operators come after it, each with that
// state as its first argument that needs a gradient: masks, views, a norm.
const CallNode* call_before(const Edge& state) {
  constexpr int kOperators = 4;
  const Node* node = state.function.get();
  for (int i = 0; node != nullptr && i <= kOperators; ++i) {
    if (const auto* const call = dynamic_cast<const CallNode*>(node)) return call;
    const edge_list& edges = node->next_edges();
    const auto next =
        std::find_if(edges.begin(), edges.end(), [](const Edge& edge) { return edge.is_valid(); });
    node = next == edges.end() ? nullptr : next->function.get();
  }
  return nullptr;
}

// The node that a step has in the place of its params, or null: that of the step before it in the
// loop, whose params have the same edges. A first step does not know that others will follow. Of
// small weights it has no node, since a node costs more than to add up its gradients and those of
// the others; of large ones it has one for them to share.
WeightsPointer shared_weights(at::ArrayRef<Edge> states, at::TensorList params,
                              const edge_list& edges_of_params) {
  constexpr int64_t kLarge = 1 << 16;  // elements
  if (std::none_of(edges_of_params.begin(), edges_of_params.end(),
                   [](const Edge& edge) { return edge.is_valid(); }))
    return {};
  const CallNode* before = nullptr;
  for (const Edge& state : states) {
    const CallNode* const call = call_before(state);
    if (call == nullptr || call->edges_of_params() != at::ArrayRef<Edge>(edges_of_params)) continue;
    before = call;
    break;
  }
  if (before != nullptr && before->weights() != nullptr) return before->weights();
  const auto size = [](int64_t sum, const at::Tensor& param) { return sum + param.numel(); };
  if (before == nullptr && std::accumulate(params.begin(), params.end(), int64_t{0}, size) < kLarge)
    return {};
  const auto made = make_node<WeightsNode>();
  made->set_params(params, edges_of_params);
  return made;
}

// What torch's own Function refuses too: transforms, and a derivative in forward mode.
void refuse_other_derivatives(const at::Tensor& input, at::TensorList states,
                              at::TensorList params) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor())
    functorch->checkSupportsCppAutogradFunction();
  using torch::autograd::isFwGradDefined, torch::autograd::isFwGradDefinedTensorList;
  TORCH_CHECK(!isFwGradDefined(input) && !isFwGradDefinedTensorList(states) &&
                  !isFwGradDefinedTensorList(params),
              "Forward-mode derivatives of the fused_rnn operators are not implemented.");
}

// Whether a call, which has been computed, is one that SharedSteps are made for.
bool is_step(const Setting& setting, const at::Tensor& input, at::TensorList params,
             const OptionalTensor& batch_sizes) {
  if (setting.single_cell) return true;
  const size_t groups = static_cast<size_t>(setting.num_layers) * (setting.bidirectional ? 2 : 1);
  const bool projects = params.size() / groups % 2 != 0;
  return !batch_sizes && input.size(0) == 1 && !projects;
}

// Forward, recorded in the graph.
std::vector<at::Tensor> with_graph(const Setting& setting, const at::Tensor& input,
                                   at::TensorList states, at::TensorList params,
                                   const OptionalTensor& batch_sizes) {
  refuse_other_derivatives(input, states, params);
  const Surroundings around;
  const bool plain = around.plain() && around.plain(input) && around.plain(states) &&
                     around.plain(params) && (!batch_sizes || around.plain(*batch_sizes));
  std::vector<at::Tensor> results;
  {
    const at::AutoGradMode no_grad(false);
    const at::AutoDispatchBelowADInplaceOrView guard;
    results = train(setting, input, states, params, batch_sizes, plain);
  }
  const auto node = make_node<CallNode>();
  edge_list edges;
  edges.reserve(1 + states.size() + params.size());
  edges.push_back(edge_of(input));
  for (const at::Tensor& state : states) edges.push_back(edge_of(state));
  edge_list of_params;
  of_params.reserve(params.size());
  for (const at::Tensor& param : params) of_params.push_back(edge_of(param));
  WeightsPointer weights;
  if (plain && is_step(setting, input, params, batch_sizes))
    weights = shared_weights(at::ArrayRef<Edge>(edges).slice(1), params, of_params);
  for (size_t i = 0; i < of_params.size(); ++i) {
    const bool shared = weights != nullptr && of_params[i].is_valid();
    edges.push_back(shared ? Edge(weights, static_cast<uint32_t>(i)) : std::move(of_params[i]));
  }
  node->set_edges(std::move(edges), std::move(weights));
  node->save(setting, input, states, params, batch_sizes, results.back());
  results.pop_back();
  torch::autograd::set_history(results, node);
  return results;
}

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
  return with_graph({std::string(cell), false, num_layers, bidirectional}, input, states, params,
                    batch_sizes);
}

std::vector<at::Tensor> cell_with_graph(const at::Tensor& input, at::TensorList states,
                                        at::TensorList params, std::string_view cell) {
  return with_graph({std::string(cell), true}, input, states, params, std::nullopt);
}

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, m) {
  m.impl("sequence", sequence_autograd);
  m.impl("cell", cell_autograd);
  // A derivative of these would be silently missing: asked for one, they refuse aloud.
  for (const char* name : {"sequence_train", "sequence_backward", "cell_train", "cell_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn
