#include "torch/problem.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace fused_rnn {
namespace {

CellKind kind_of(std::string_view cell) {
  if (cell == "lstm") return CellKind::lstm;
  if (cell == "gru") return CellKind::gru;
  if (cell == "rnn_tanh") return CellKind::rnn_tanh;
  if (cell == "rnn_relu") return CellKind::rnn_relu;
  TORCH_CHECK(false, "Expected cell to be 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu', got '", cell,
              "'");
}

// Products of sizes that must fit in 63 bits, so that no offset in a kernel can overflow.
int64_t product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (const int64_t factor : factors) {
    TORCH_CHECK(!__builtin_mul_overflow(result, factor, &result),
                "Expected sizes whose product fits in 64 bits, got ",
                at::IntArrayRef(factors.begin(), factors.size()));
  }
  return result;
}

}  // namespace

Problem::Problem(const at::Tensor& input, at::TensorList states, at::TensorList params,
                 std::string_view cell, int64_t num_layers, bool bidirectional)
    : kind(kind_of(cell)),
      traits(cell_traits(kind)),
      dtype(input.scalar_type()),
      compute(at::isReducedFloatingType(dtype) ? at::kFloat : dtype),
      narrow(dtype == at::kBFloat16 ? fast_bfloat16_kernels() : nullptr),
      operand(narrow != nullptr ? dtype : compute),
      L(num_layers),
      D(bidirectional ? 2 : 1) {
  TORCH_CHECK(input.device().is_cpu(), "Expected input to be on the CPU, got ", input.device());
  TORCH_CHECK(input.layout() == at::kStrided, "Expected input to be dense, got layout ",
              input.layout());
  TORCH_CHECK(compute == at::kFloat || compute == at::kDouble,
              "Expected input to be float32, float64, float16 or bfloat16, got ", dtype);
  TORCH_CHECK(num_layers > 0, "Expected num_layers to be positive, got ", num_layers);
  const size_t expected = traits.has_state ? 2 : 1;
  TORCH_CHECK(states.empty() || states.size() == expected, "Expected no states or ", expected,
              " for cell '", cell, "', got ", states.size());
  const int64_t groups = product({num_layers, D});
  const int64_t count = static_cast<int64_t>(params.size());
  const int64_t each = count / groups;
  TORCH_CHECK(each * groups == count && each >= 2 && each <= 5,
              "Expected 2 to 5 parameters (w_ih, w_hh, then b_ih, b_hh with bias, w_hr with a "
              "projection) for each of ",
              groups, " layers and directions, got ", count);
  bias = each >= 4;
  if (each == 3 || each == 5) {
    const at::Tensor& w_hr = params[static_cast<size_t>(each - 1)];
    TORCH_CHECK(kind == CellKind::lstm, "Expected a projection (", each,
                " parameters a layer) for cell 'lstm' only, got '", cell, "'");
    TORCH_CHECK(w_hr.dim() == 2 && w_hr.size(0) > 0, "Expected w_hr to be [P, H], got ",
                w_hr.sizes());
    P = w_hr.size(0);
  }
  const at::Tensor& w_hh = params[1];
  TORCH_CHECK(w_hh.dim() == 2 && w_hh.size(0) > 0 && w_hh.size(0) % traits.gates == 0,
              "Expected w_hh to be [", traits.gates, " * hidden_size, ...], got ", w_hh.sizes());
  H = w_hh.size(0) / traits.gates;
  TORCH_CHECK(P < H || P == 0, "Expected a projection size below hidden_size ", H, ", got ", P);
  input_ = for_kernels(input, operand);
}

c10::MaybeOwned<at::Tensor> Problem::for_kernels(const at::Tensor& tensor, at::ScalarType type) {
  if (tensor.scalar_type() == type) return tensor.expect_contiguous();
  return c10::MaybeOwned<at::Tensor>::owned(tensor.to(type).contiguous());
}

Problem Problem::sequence(const at::Tensor& input, at::TensorList states, at::TensorList params,
                          const std::optional<at::Tensor>& batch_sizes, std::string_view cell,
                          int64_t num_layers, bool bidirectional) {
  Problem p(input, states, params, cell, num_layers, bidirectional);
  if (!batch_sizes.has_value()) {
    TORCH_CHECK(input.dim() == 3, "Expected input to be [T, B, I], got ", input.sizes());
    p.T = input.size(0);
    p.B = input.size(1);
    p.N = product({p.T, p.B});
    TORCH_CHECK(p.T > 0, "Expected sequence length to be larger than 0 in RNN");
    TORCH_CHECK(p.B > 0, "Expected batch size to be larger than 0, got input ", input.sizes());
  } else {
    TORCH_CHECK(input.dim() == 2, "Expected packed input to be [N, I], got ", input.sizes());
    const at::Tensor& sizes = *batch_sizes;
    TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
                "Expected batch_sizes to be one int64 dimension on the CPU, got ", sizes.dim(),
                " dimensions of ", sizes.scalar_type(), " on ", sizes.device());
    TORCH_CHECK(sizes.size(0) > 0, "Expected sequence length to be larger than 0 in RNN");
    p.batch_sizes_ = sizes.expect_contiguous();
    p.batch_sizes = p.batch_sizes_->const_data_ptr<int64_t>();
    p.T = sizes.size(0);
    p.B = p.batch_sizes[0];
    int64_t before = p.B;
    for (int64_t t = 0; t < p.T; ++t) {
      const int64_t batch = p.batch_sizes[t];
      TORCH_CHECK(batch > 0, "Expected batch_sizes to be positive, got ", batch, " at step ", t);
      TORCH_CHECK(batch <= before, "Expected batch_sizes not to rise, got ", batch, " after ",
                  before, " at step ", t);
      TORCH_CHECK(batch <= input.size(0) - p.N, "Expected batch_sizes to sum to the ",
                  input.size(0), " rows of the packed input, got more by step ", t);
      p.N += batch;
      before = batch;
    }
    TORCH_CHECK(p.N == input.size(0), "Expected batch_sizes to sum to the ", input.size(0),
                " rows of the packed input, got ", p.N);
  }
  p.I = input.size(-1);
  p.check_params(params);
  p.check_states(states);
  p.check_total_size();
  return p;
}

Problem Problem::cell(const at::Tensor& input, at::TensorList states, at::TensorList params,
                      std::string_view cell) {
  Problem p(input, states, params, cell, 1, false);
  TORCH_CHECK(input.dim() == 2, "Expected input to be [B, I], got ", input.sizes());
  TORCH_CHECK(p.P == 0, "Expected a cell without projection, got ", params.size(), " parameters");
  p.single_cell = true;
  p.B = input.size(0);
  p.N = p.B;
  TORCH_CHECK(p.B > 0, "Expected batch size to be larger than 0, got input ", input.sizes());
  p.I = input.size(1);
  p.check_params(params);
  p.check_states(states);
  p.check_total_size();
  return p;
}

void Problem::check(const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType type,
                    const char* name) const {
  TORCH_CHECK(tensor.scalar_type() == type, "Expected ", name, " to have dtype ", type,
              " for an input of dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == input_->device() && tensor.layout() == at::kStrided, "Expected ",
              name, " to be dense and on the CPU, got ", tensor.layout(), " on ", tensor.device());
  TORCH_CHECK(tensor.sizes() == sizes, "Expected ", name, " size ", sizes, ", got ",
              tensor.sizes());
}

void Problem::check_params(at::TensorList params) {
  TORCH_CHECK(I > 0, "Expected input size to be larger than 0, got input ", input_->sizes());
  const int64_t rows = traits.gates * H;
  const auto check = [&](size_t i, at::IntArrayRef sizes, const char* name) {
    this->check(params[i], sizes, dtype, name);
    params_.push_back(c10::MaybeOwned<at::Tensor>::borrowed(params[i]));
  };
  size_t i = 0;
  for (int64_t layer = 0; layer < L; ++layer) {
    for (int64_t direction = 0; direction < D; ++direction) {
      check(i++, {rows, input_size(layer)}, "w_ih");
      check(i++, {rows, hidden()}, "w_hh");
      if (bias) {
        check(i++, {rows}, "b_ih");
        check(i++, {rows}, "b_hh");
      }
      if (P > 0) check(i++, {P, H}, "w_hr");
    }
  }
}

const at::Tensor& Problem::param(int64_t i) const {
  c10::MaybeOwned<at::Tensor>& param = params_[static_cast<size_t>(i)];
  const at::ScalarType type = param->dim() == 1 ? compute : operand;
  if (param->scalar_type() != type || !param->is_contiguous())
    param = c10::MaybeOwned<at::Tensor>::owned(param->to(type).contiguous());
  return *param;
}

void Problem::check_states(at::TensorList states) {
  constexpr const char* kNames[] = {"hidden[0]", "hidden[1]"};
  for (size_t i = 0; i < states.size(); ++i) {
    check(states[i], state_sizes(i), dtype, kNames[i]);
    states_.push_back(for_kernels(states[i], i == 0 ? operand : compute));
  }
}

// The largest arrays of a call, in bytes.
void Problem::check_total_size() const {
  const int64_t widest = std::max<int64_t>({traits.gates, saved(), 1});
  product({L, D, N, H, widest + 2, int64_t{8}});
  product({N, std::max(I, D * hidden()), int64_t{8}});
  product({traits.gates + 1, H, I + D * hidden() + 1, int64_t{8}});
}

std::vector<int64_t> Problem::output_sizes() const {
  if (single_cell) return {B, H};
  if (batch_sizes != nullptr) return {N, D * hidden()};
  return {T, B, D * hidden()};
}

std::vector<int64_t> Problem::state_sizes(size_t i) const {
  const int64_t size = i == 0 ? hidden() : H;
  if (single_cell) return {B, size};
  return {L * D, B, size};
}

}  // namespace fused_rnn
