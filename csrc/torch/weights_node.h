// The weights of a loop of steps, as a node of the graph between the steps and the weights.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "torch/shared_steps.h"

namespace fused_rnn {

// Inputs and edges: the params of the steps. A step's backward call either leaves its rows here,
// and gives no gradients of the params, or gives them as any node does. The engine runs this node
// when all steps of a backward pass are done.
class WeightsNode final : public torch::autograd::Node {
 public:
  using variable_list = torch::autograd::variable_list;

  // Both lists belong together: an edge is not valid where a param needs no gradient.
  void set_params(at::TensorList params, torch::autograd::edge_list edges);

  // Where the rows of a step go in the backward pass that is running; null outside of one, or if
  // the step's are of another kind than those that are there. Valid until the pass has come to
  // this node.
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
  // Of one backward pass. Several may run at the same time, in threads of their own. What one that
  // failed has left stays until the graph is gone.
  struct Pass {
    int id;
    std::unique_ptr<SharedSteps> steps;
  };

  std::unique_ptr<SharedSteps> take(int pass);

  std::mutex passes_mutex_;
  std::vector<Pass> passes_;
};

}  // namespace fused_rnn
