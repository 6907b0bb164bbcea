#include "torch/shared_steps.h"

#include <algorithm>
#include <iterator>

#include "torch/memory.h"
#include "torch/threads.h"

namespace fused_rnn {
namespace {

// Rows until a product is made of them: as many as let it run at full speed.
constexpr int64_t kRows = 256;
// The step that weights are packed in: for fewer it would not pay.
constexpr int kStepsUntilPacked = 3;

}  // namespace

SharedSteps::SharedSteps(const Problem& p, std::vector<bool> wanted)
    : kind_(p.kind),
      dtype_(p.dtype),
      compute_(p.compute),
      operand_(p.operand),
      narrow_(p.narrow),
      D_(p.D),
      I_(p.I),
      H_(p.H),
      groups_(p.L * p.D),
      params_of_group_(p.params_of_layer()),
      wanted_(std::move(wanted)),
      gradients_(wanted_.size()) {}

bool SharedSteps::fits(const Problem& p) const {
  return kind_ == p.kind && dtype_ == p.dtype && narrow_ == p.narrow && D_ == p.D && I_ == p.I &&
         H_ == p.H && groups_ == p.L * p.D && params_of_group_ == p.params_of_layer();
}

void SharedSteps::begin_step(const Problem& p, at::TensorList params, bool input_gradient) {
  if (count_ + p.N > capacity_) {
    multiply();
    if (p.N > capacity_) allocate(std::max(p.N, kRows));
  }
  rows_of_step_ = p.N;

  const auto version = [](const at::Tensor& param) {
    return param.is_inference() ? int64_t{0} : param._version();
  };
  if (params_.empty()) {
    params_ = params.vec();
    std::transform(params_.begin(), params_.end(), std::back_inserter(versions_), version);
  }
  bool same = true;
  for (size_t i = 0; i < params_.size(); ++i)
    same = same && params[i].is_same(params_[i]) && version(params[i]) == versions_[i];
  if (same && ++steps_ == kStepsUntilPacked) {
    packed_ = std::make_unique<PackedLayers>(
        p, input_gradient ? PackedFor::backward : PackedFor::backward_without_input);
    packed_for_input_ = input_gradient;
  }
  reads_packed_ = same && packed_ != nullptr && (packed_for_input_ || !input_gradient);
}

void SharedSteps::allocate(int64_t capacity) {
  capacity_ = capacity;
  rows_.resize(static_cast<size_t>(groups_));
  int64_t stride = 0;
  with_kernels(narrow_, compute_, [&]<typename E>(const Kernels<E>&) {
    stride = delta_stride<E>(cell_traits(kind_).sums * H_);
  });
  for (int64_t group = 0; group < groups_; ++group) {
    rows_[static_cast<size_t>(group)] = {empty({capacity, input_size(group)}, operand_),
                                         empty({capacity, H_}, operand_),
                                         empty({capacity, stride}, operand_)};
  }
}

template <typename E>
void SharedSteps::multiply(const Kernels<E>& run) {
  using T = sum_t<E>;
  const int64_t gates = cell_traits(kind_).gates * H_;
  for (int64_t group = 0; group < groups_; ++group) {
    const Rows& kept = rows_[static_cast<size_t>(group)];
    const int64_t I = input_size(group);
    const int64_t first = group * params_of_group_;
    BackwardArgs<E> args{};
    args.shape = {1, count_, I, H_, 0, nullptr, false};
    args.x = data<E>(kept.x);
    args.x_stride = I;
    args.h0 = data<E>(kept.h_prev);
    args.deltas = mutable_data<E>(kept.deltas);
    T** const places[] = {&args.grad_w_ih, &args.grad_w_hh, &args.grad_b_ih, &args.grad_b_hh};
    bool any = false;
    bool add = false;  // All that are wanted come into being together.
    for (int64_t i = 0; i < params_of_group_; ++i) {
      if (!wants(first + i)) continue;
      at::Tensor& gradient = gradients_[static_cast<size_t>(first + i)];
      any = true;
      add = gradient.defined();
      if (!add) {
        gradient = i == 0   ? empty({gates, I}, compute_)
                   : i == 1 ? empty({gates, H_}, compute_)
                            : empty({gates}, compute_);
      }
      *places[i] = mutable_data<T>(gradient);
    }
    if (any) run.weight_gradients(kind_, args, add, torch_threads());
  }
}

void SharedSteps::multiply() {
  if (count_ == 0) return;
  with_kernels(narrow_, compute_, [this](const auto& run) { multiply(run); });
  count_ = 0;
}

std::vector<at::Tensor> SharedSteps::take() {
  multiply();
  for (at::Tensor& gradient : gradients_) {
    if (gradient.defined() && gradient.scalar_type() != dtype_) gradient = gradient.to(dtype_);
  }
  return std::move(gradients_);
}

}  // namespace fused_rnn
