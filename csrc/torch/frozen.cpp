#include "torch/frozen.h"

#include <algorithm>
#include <new>

#include "cpu/workspace.h"
#include "torch/kernel_data.h"

namespace fused_rnn {

PackedLayers::PackedLayers(const Problem& p) {
  with_kernels(p, [&]<typename E>(const Kernels<E>& run) {
    kernels_ = &run;
    for (int64_t group = 0; group < p.L * p.D; ++group) {
      const SequenceShape shape = p.shape(group / p.D, group % p.D);
      blocks_.emplace_back(static_cast<std::byte*>(allocate(run.packed_bytes(p.kind, shape))));
      if (blocks_.back() == nullptr) throw std::bad_alloc();
      run.pack(p.kind, shape, layer_weights<E>(p, group), blocks_.back().get());
    }
  });
}

std::shared_ptr<const PackedLayers> Frozen::packed(const Problem& p) {
  const void* kernels = nullptr;
  with_kernels(p, [&](const auto& run) { kernels = &run; });
  const bool unchanged = std::equal(
      params_.begin(), params_.end(), versions_.begin(), versions_.end(),
      [](const at::Tensor& param, int64_t version) { return param._version() == version; });
  if (packed_ == nullptr || !packed_->are_for(kernels) || !unchanged) {
    packed_ = nullptr;  // Its memory is free before the next is taken.
    versions_.clear();
    for (const at::Tensor& param : params_) versions_.push_back(param._version());
    packed_ = std::make_shared<const PackedLayers>(p);
  }
  return packed_;
}

}  // namespace fused_rnn
