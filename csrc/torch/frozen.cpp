#include "torch/frozen.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "torch/kernel_data.h"
#include "torch/surroundings.h"

namespace fused_rnn {

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
    packed_ = std::make_shared<const PackedLayers>(p, PackedFor::forward);
  }
  return packed_;
}

template <typename MakeProblem>
std::optional<std::vector<at::Tensor>> Frozen::infer(const at::Tensor& input,
                                                     const std::vector<at::Tensor>& states,
                                                     const MakeProblem& make) {
  const Surroundings around;
  if (!around.plain() || !around.plain(input) || !around.plain(states) || !around.plain(params_) ||
      needs_graph(input, states, params_))
    return std::nullopt;
  const at::AutoDispatchBelowADInplaceOrView guard;
  try {
    const Problem p = make();
    const std::shared_ptr<const PackedLayers> weights = packed(p);
    const pybind11::gil_scoped_release release;
    return fused_rnn::infer(p, *weights);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

std::optional<std::vector<at::Tensor>> Frozen::sequence(const at::Tensor& input,
                                                        const std::vector<at::Tensor>& states,
                                                        const OptionalTensor& batch_sizes,
                                                        std::string_view cell, int64_t num_layers,
                                                        bool bidirectional) {
  if (batch_sizes.has_value() && !Surroundings().plain(*batch_sizes)) return std::nullopt;
  return infer(input, states, [&] {
    return Problem::sequence(input, states, params_, batch_sizes, cell, num_layers, bidirectional);
  });
}

std::optional<std::vector<at::Tensor>> Frozen::cell(const at::Tensor& input,
                                                    const std::vector<at::Tensor>& states,
                                                    std::string_view cell) {
  return infer(input, states, [&] { return Problem::cell(input, states, params_, cell); });
}

}  // namespace fused_rnn
