#include "torch/weights_node.h"

#include <ATen/ops/add.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

namespace fused_rnn {

void WeightsNode::set_params(at::TensorList params, torch::autograd::edge_list edges) {
  for (const at::Tensor& param : params) add_input_metadata(param);
  set_next_edges(std::move(edges));
}

std::vector<WeightsNode::Pass>::iterator WeightsNode::find(int id) {
  return std::find_if(passes_.begin(), passes_.end(),
                      [id](const Pass& pass) { return pass.id == id; });
}

SharedSteps* WeightsNode::steps(const Problem& p) {
  const int id = torch::autograd::get_current_graph_task_id();
  if (id < 0) return nullptr;
  const std::lock_guard<std::mutex> lock(passes_mutex_);
  const auto pass = find(id);
  if (pass != passes_.end()) return pass->steps->fits(p) ? pass->steps.get() : nullptr;
  if (passes_.size() == kMostPasses) return nullptr;
  std::vector<bool> wanted(num_outputs());
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = task_should_compute_output(i);
  passes_.push_back({id, std::make_unique<SharedSteps>(p, std::move(wanted))});
  return passes_.back().steps.get();
}

std::unique_ptr<SharedSteps> WeightsNode::take(int id) {
  const std::lock_guard<std::mutex> lock(passes_mutex_);
  const auto pass = find(id);
  if (pass == passes_.end()) return nullptr;
  std::unique_ptr<SharedSteps> steps = std::move(pass->steps);
  passes_.erase(pass);
  return steps;
}

torch::autograd::variable_list WeightsNode::apply(variable_list&& grads) {
  variable_list sums = std::move(grads);
  const auto steps = take(torch::autograd::get_current_graph_task_id());
  if (steps == nullptr) return sums;
  std::vector<at::Tensor> left = steps->take();
  for (size_t i = 0; i < sums.size(); ++i) {
    if (!left[i].defined()) continue;
    sums[i] = sums[i].defined() ? at::add(sums[i], left[i]) : std::move(left[i]);
  }
  return sums;
}

}  // namespace fused_rnn
