#include "torch/packed_layers.h"

#include "torch/kernel_data.h"
#include "torch/memory.h"

namespace fused_rnn {

PackedLayers::PackedLayers(const Problem& p, PackedFor use) {
  with_kernels(p, [&]<typename E>(const Kernels<E>& run) {
    kernels_ = &run;
    const bool forward = use == PackedFor::forward;
    for (int64_t group = 0; group < p.L * p.D; ++group) {
      SequenceShape shape = p.shape(group / p.D, group % p.D);
      if (use == PackedFor::backward_without_input && group < p.D) shape.I = 0;
      const size_t bytes = (forward ? run.packed_bytes : run.packed_backward_bytes)(p.kind, shape);
      blocks_.push_back(empty({static_cast<int64_t>(bytes)}, at::kByte));
      (forward ? run.pack : run.pack_backward)(
          p.kind, shape, layer_weights<E>(p, group),
          static_cast<std::byte*>(blocks_.back().mutable_data_ptr()));
    }
  });
}

}  // namespace fused_rnn
