// The kernels of a call, and its tensors as they take them: pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "torch/problem.h"

namespace fused_rnn {

// The kernels' bfloat16 in place of torch's.
template <typename E>
using torch_type = std::conditional_t<std::is_same_v<E, bfloat16>, at::BFloat16, E>;

template <typename E>
const E* data(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  return reinterpret_cast<const E*>(tensor.const_data_ptr<torch_type<E>>());
}

template <typename E>
const E* data(const at::Tensor* tensor) {
  return tensor == nullptr ? nullptr : data<E>(*tensor);
}

template <typename E>
E* mutable_data(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  return reinterpret_cast<E*>(tensor.mutable_data_ptr<torch_type<E>>());
}

// The weights of a layer and direction, in the order in which the ops take them.
template <typename E>
LayerWeights<E> layer_weights(const Problem& p, int64_t group) {
  using T = sum_t<E>;
  int64_t i = group * p.params_of_layer();
  LayerWeights<E> w{};
  w.w_ih = data<E>(p.param(i++));
  w.w_hh = data<E>(p.param(i++));
  if (p.bias) {
    w.b_ih = data<T>(p.param(i++));
    w.b_hh = data<T>(p.param(i++));
  }
  if (p.P > 0) w.w_hr = data<E>(p.param(i++));
  return w;
}

// run(kernels) with those of a call's types.
template <typename Run>
void with_kernels(const Kernels<bfloat16>* narrow, at::ScalarType compute, const Run& run) {
  if (narrow != nullptr) return run(*narrow);
  if (compute == at::kFloat) return run(kernels<float>());
  run(kernels<double>());
}

template <typename Run>
void with_kernels(const Problem& p, const Run& run) {
  with_kernels(p.narrow, p.compute, run);
}

}  // namespace fused_rnn
