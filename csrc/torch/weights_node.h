// The weights of a loop of steps, as a node of the graph between the steps and the weights.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "torch/make_node.h"
#include "torch/shared_steps.h"

namespace fused_rnn {

// Inputs and edges: the params of the steps. In a backward pass a step either leaves its rows in
// the pass's SharedSteps, and gives no gradients of the params, or gives them as any node does. The
// engine runs this node when all steps of the pass are done.
class WeightsNode final : public torch::autograd::Node {
 public:
  using variable_list = torch::autograd::variable_list;

  // Both lists belong together: an edge is not valid where a param needs no gradient.
  void set_params(at::TensorList params, torch::autograd::edge_list edges);

  // Where the rows of a step go in the backward pass that is running; null outside of one, if the
  // step's are of another kind than those that are there, or if too many passes are under way.
  // Valid until the pass has come to this node.
  SharedSteps* steps(const Problem& p);

  std::string name() const override { return "FusedWeightsBackward"; }
  variable_list apply(variable_list&& grads) override;

  // Compiled autograd takes gradients through, since its steps give them as any node does.
  void compiled_args(torch::autograd::CompiledNodeArgs&) const override {}
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::autograd::SwapSavedVariables&) override {
    return grads;
  }

 private:
  // Of one backward pass. Several may run at the same time, in threads of their own or one inside
  // another. What one that failed has left stays until the graph is gone, so there may only be a
  // few.
  static constexpr size_t kMostPasses = 4;
  struct Pass {
    int id;
    std::unique_ptr<SharedSteps> steps;
  };

  std::vector<Pass>::iterator find(int id);
  std::unique_ptr<SharedSteps> take(int id);

  std::mutex passes_mutex_;
  std::vector<Pass> passes_;
};

using WeightsPointer = decltype(make_node<WeightsNode>());

}  // namespace fused_rnn
