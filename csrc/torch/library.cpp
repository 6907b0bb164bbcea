// Every op of the library, and the Python module `fused_rnn._C`.
//
// cell is "lstm", "gru", "rnn_tanh" or "rnn_relu". A sequence is dense [T, B, I], or packed [N, I]
// with batch_sizes [T]. states are none (zeros), [h0], or for an LSTM [h0, c0], each [L*D, B,
// size]; params are for each layer and direction w_ih, w_hh(, b_ih, b_hh)(, w_hr). The results are
// output, hn(, cn); those of a cell are h(, c). The `_train` ops return last what their `_backward`
// op needs (problem.h has its layout). `wanted` has an entry for input, each state and each
// parameter; the backward ops return the wanted gradients in that order.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "torch/direct.h"

TORCH_LIBRARY(fused_rnn, m) {
  m.def(
      "sequence(Tensor input, Tensor[] states, Tensor[] params, Tensor? batch_sizes, str cell, "
      "int num_layers, bool bidirectional) -> Tensor[]");
  m.def(
      "sequence_train(Tensor input, Tensor[] states, Tensor[] params, Tensor? batch_sizes, "
      "str cell, int num_layers, bool bidirectional) -> Tensor[]");
  m.def(
      "sequence_backward(Tensor?[] grads, Tensor input, Tensor[] states, Tensor[] params, "
      "Tensor? batch_sizes, Tensor reserve, str cell, int num_layers, "
      "bool bidirectional, bool[] wanted) -> Tensor[]");
  m.def("cell(Tensor input, Tensor[] states, Tensor[] params, str cell) -> Tensor[]");
  m.def("cell_train(Tensor input, Tensor[] states, Tensor[] params, str cell) -> Tensor[]");
  m.def(
      "cell_backward(Tensor?[] grads, Tensor input, Tensor[] states, Tensor[] params, "
      "Tensor reserve, str cell, bool[] wanted) -> Tensor[]");
}

namespace fused_rnn {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> result;
  for (const Isa isa : isas) result.emplace_back(isa_name(isa));
  return result;
}

pybind11::dict config() {
  const ActiveIsa active = active_isa();
  pybind11::dict d;
  d["torch_built"] = FUSED_RNN_TORCH_VERSION;
  d["compiler"] = compiler();
  d["isa_built"] = names(built_isas());
  d["isa_available"] = names(available_isas());
  d["isa_active"] = isa_name(active.isa);
  d["isa_reason"] = active.reason;
  d["bfloat16_products"] = bfloat16_kernels() != nullptr;
#ifdef _OPENMP
  d["openmp"] = true;
#else
  d["openmp"] = false;
#endif
#ifdef FUSED_RNN_WITH_CUDA
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  return d;
}

template <typename E>
double measure_fma_rate(const Kernels<E>& kernels, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 1 << 16;
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = Clock::now();
    const double operations = kernels.operations(kRounds);
    const std::chrono::duration<double> took = Clock::now() - start;
    best = std::max(best, operations / took.count());
  } while (Clock::now() < end);
  return best * 1e-9;
}

double fma_rate(const std::string& dtype, double seconds) {
  const pybind11::gil_scoped_release release;
  if (dtype == "float32") return measure_fma_rate(kernels<float>(), seconds);
  if (dtype == "float64") return measure_fma_rate(kernels<double>(), seconds);
  if (dtype == "bfloat16" && bfloat16_kernels() != nullptr)
    return measure_fma_rate(*bfloat16_kernels(), seconds);
  throw std::invalid_argument(
      "Expected dtype 'float32', 'float64' or, with an instruction set that multiplies it, "
      "'bfloat16', got '" +
      dtype + "'");
}

void set_isa(const std::optional<std::string>& name) {
  try {
    choose_isa(name.value_or(""));
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(error.what());
  }
}

}  // namespace
}  // namespace fused_rnn

PYBIND11_MODULE(_C, m) {
  // A wrong FUSED_RNN_CPU_ISA is told at import, not at the first layer.
  fused_rnn::active_isa();
  m.def("config", &fused_rnn::config, "How this extension was built and what it runs.");
  m.def("set_isa", &fused_rnn::set_isa, pybind11::arg("name"),
        "Run the kernels of this instruction set; None goes back to the environment or detection.");
  m.def(
      "multiplies_bfloat16", [] { return fused_rnn::bfloat16_kernels() != nullptr; },
      "Whether the active set has kernels for bfloat16; others compute it as float32.");
  m.def("fma_rate", &fused_rnn::fma_rate, pybind11::arg("dtype"), pybind11::arg("seconds"),
        "GF/s of fused multiply-adds in registers, one thread: the peak of the active set.");
  if (PyModule_AddFunctions(m.ptr(), fused_rnn::direct_methods) != 0)
    throw pybind11::error_already_set();
}
