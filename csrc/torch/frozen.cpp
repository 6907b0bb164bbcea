#include "torch/frozen.h"

#include <new>

#include "cpu/workspace.h"
#include "torch/kernel_data.h"

namespace fused_rnn {

template <typename E>
PackedLayers::PackedLayers(const Problem& p, const Kernels<E>& run) {
  for (int64_t layer = 0; layer < p.L; ++layer) {
    for (int64_t direction = 0; direction < p.D; ++direction) {
      const SequenceShape shape = p.shape(layer, direction);
      std::byte* const block = static_cast<std::byte*>(allocate(run.packed_bytes(p.kind, shape)));
      if (block == nullptr) throw std::bad_alloc();
      blocks_.emplace_back(block);
      run.pack(p.kind, shape, layer_weights<E>(p, layer * p.D + direction), block);
    }
  }
}

template <typename E>
std::shared_ptr<const PackedLayers> Frozen::packed(const Problem& p, const Kernels<E>& run) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (packed_for_ != &run) {
    packed_ = std::make_shared<const PackedLayers>(p, run);
    packed_for_ = &run;
  }
  return packed_;
}

template std::shared_ptr<const PackedLayers> Frozen::packed(const Problem&,
                                                            const Kernels<float>&) const;
template std::shared_ptr<const PackedLayers> Frozen::packed(const Problem&,
                                                            const Kernels<double>&) const;
template std::shared_ptr<const PackedLayers> Frozen::packed(const Problem&,
                                                            const Kernels<bfloat16>&) const;

}  // namespace fused_rnn
