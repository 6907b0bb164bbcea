// Whether a call may go to the kernels without torch's dispatcher.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>

namespace fused_rnn {

// What has an interest in a call made here and now: plain if nothing but autograd and the CPU has,
// that is no transform, tracer, mode, profiler or autocast.
class Surroundings {
 public:
  Surroundings()
      : keys_(c10::impl::tls_local_dispatch_key_set()),
        plain_(!at::impl::torch_function_mode_enabled() && !at::hasCallbacks() &&
               torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr) {}

  bool plain() const { return plain_; }

  // Whether a tensor, if there is one, brings no other interest along; subclasses are not asked
  // about.
  bool plain(const at::Tensor& tensor) const {
    if (!tensor.defined()) return true;
    constexpr c10::DispatchKeySet kPlain =
        c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                             c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::BackendSelect});
    const c10::DispatchKeySet keys = (tensor.key_set() | keys_.included_) - keys_.excluded_;
    return (keys.raw_repr() & ~kPlain.raw_repr()) == 0;
  }

  bool plain(at::TensorList tensors) const {
    return std::all_of(tensors.begin(), tensors.end(),
                       [this](const at::Tensor& tensor) { return plain(tensor); });
  }

 private:
  c10::impl::LocalDispatchKeySet keys_;
  bool plain_;
};

}  // namespace fused_rnn
