#include "torch/recompute.h"

#include <ATen/ops/gru.h>
#include <ATen/ops/gru_cell.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/lstm_cell.h>
#include <ATen/ops/rnn_relu.h>
#include <ATen/ops/rnn_relu_cell.h>
#include <ATen/ops/rnn_tanh.h>
#include <ATen/ops/rnn_tanh_cell.h>
#include <ATen/ops/zeros.h>

#include "cpu/kernels.h"

namespace fused_rnn {

std::vector<at::Tensor> recompute_sequence(const at::Tensor& input, at::TensorList states,
                                           at::TensorList params, const OptionalTensor& batch_sizes,
                                           std::string_view cell, int64_t num_layers,
                                           bool bidirectional) {
  const int64_t directions = bidirectional ? 2 : 1;
  const int64_t each = static_cast<int64_t>(params.size()) / (num_layers * directions);
  const bool bias = each >= 4;
  std::vector<at::Tensor> all(states.begin(), states.end());
  if (all.empty()) {
    const int64_t batch =
        batch_sizes.has_value() ? batch_sizes->select(0, 0).item<int64_t>() : input.size(1);
    const int64_t hidden = params[1].size(1);
    all.push_back(at::zeros({num_layers * directions, batch, hidden}, input.options()));
    if (cell == "lstm") {
      all.push_back(at::zeros(
          {num_layers * directions, batch, params[1].size(0) / cell_traits(CellKind::lstm).gates},
          input.options()));
    }
  }
  const auto run = [&](auto&& dense, auto&& packed) -> std::vector<at::Tensor> {
    if (batch_sizes.has_value()) {
      auto [output, hn] =
          packed(input, *batch_sizes, all[0], params, bias, num_layers, 0.0, false, bidirectional);
      return {output, hn};
    }
    auto [output, hn] =
        dense(input, all[0], params, bias, num_layers, 0.0, false, bidirectional, false);
    return {output, hn};
  };
  if (cell == "gru") {
    return run([](auto&&... a) { return at::gru(a...); },
               [](auto&&... a) { return at::gru(a...); });
  }
  if (cell == "rnn_tanh") {
    return run([](auto&&... a) { return at::rnn_tanh(a...); },
               [](auto&&... a) { return at::rnn_tanh(a...); });
  }
  if (cell == "rnn_relu") {
    return run([](auto&&... a) { return at::rnn_relu(a...); },
               [](auto&&... a) { return at::rnn_relu(a...); });
  }
  auto [output, hn, cn] =
      batch_sizes.has_value()
          ? at::lstm(input, *batch_sizes, all, params, bias, num_layers, 0.0, false, bidirectional)
          : at::lstm(input, all, params, bias, num_layers, 0.0, false, bidirectional, false);
  return {output, hn, cn};
}

std::vector<at::Tensor> recompute_cell(const at::Tensor& input, at::TensorList states,
                                       at::TensorList params, std::string_view cell) {
  std::vector<at::Tensor> all(states.begin(), states.end());
  if (all.empty()) {
    const at::Tensor zeros = at::zeros({input.size(0), params[1].size(1)}, input.options());
    all = {zeros, zeros};
  }
  const OptionalTensor b_ih = params.size() > 2 ? OptionalTensor(params[2]) : std::nullopt;
  const OptionalTensor b_hh = params.size() > 2 ? OptionalTensor(params[3]) : std::nullopt;
  if (cell == "gru") return {at::gru_cell(input, all[0], params[0], params[1], b_ih, b_hh)};
  if (cell == "rnn_tanh")
    return {at::rnn_tanh_cell(input, all[0], params[0], params[1], b_ih, b_hh)};
  if (cell == "rnn_relu")
    return {at::rnn_relu_cell(input, all[0], params[0], params[1], b_ih, b_hh)};
  auto [h, c] = at::lstm_cell(input, all, params[0], params[1], b_ih, b_hh);
  return {h, c};
}

}  // namespace fused_rnn
