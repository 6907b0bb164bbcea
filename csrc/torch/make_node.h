// Nodes of the graph, held as this version of torch holds them.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>

namespace fused_rnn {

// By intrusive_ptr or, in older versions, by shared_ptr and with a function of its own to delete
// them.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename Kind>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<Kind>(new Kind, [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Kind>();
  }
}

}  // namespace fused_rnn
