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
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "torch/direct.h"
#include "torch/frozen.h"

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
  d["bfloat16_products"] = fast_bfloat16_kernels() != nullptr;
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

// The highest rate at which `work`, which returns how much it did, ran within these seconds.
template <typename Work>
double best_rate(double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = Clock::now();
    const double done = work();
    const std::chrono::duration<double> took = Clock::now() - start;
    best = std::max(best, done / took.count());
  } while (Clock::now() < end);
  return best * 1e-9;
}

template <typename E>
double measure_fma_rate(const Kernels<E>& kernels, double seconds) {
  return best_rate(seconds, [&] { return kernels.operations(1 << 16); });
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

template <typename T>
double measure_activation_rate(const Kernels<T>& kernels, double seconds) {
  constexpr int64_t kValues = 512;  // in L1
  constexpr int kRounds = 100;
  std::vector<T> x(kValues), y(kValues);
  for (int64_t i = 0; i < kValues; ++i) x[i] = static_cast<T>(i - kValues / 2) / 64;
  return best_rate(seconds, [&] {
    for (int round = 0; round < kRounds; ++round) {
      kernels.sigmoid(x.data(), y.data(), kValues);
      kernels.tanh(x.data(), y.data(), kValues);
    }
    return 2.0 * kRounds * kValues;
  });
}

double activation_rate(const std::string& dtype, double seconds) {
  const pybind11::gil_scoped_release release;
  if (dtype == "float32") return measure_activation_rate(kernels<float>(), seconds);
  if (dtype == "float64") return measure_activation_rate(kernels<double>(), seconds);
  throw std::invalid_argument("Expected dtype 'float32' or 'float64', got '" + dtype + "'");
}

double read_rate(int64_t bytes, double seconds) {
  constexpr int64_t kLeast = 256 * sizeof(float);
  if (bytes < kLeast) {
    throw std::invalid_argument("Expected at least " + std::to_string(kLeast) + " bytes, got " +
                                std::to_string(bytes));
  }
  const pybind11::gil_scoped_release release;
  const int64_t n = bytes / kLeast * 256;
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(allocate(static_cast<size_t>(n) * sizeof(float))), &std::free);
  if (memory == nullptr) throw std::bad_alloc();
  std::fill_n(memory.get(), n, 0.0F);
  const int64_t rounds = std::max<int64_t>(1, (1 << 20) / bytes);
  return best_rate(seconds, [&] {
    for (int64_t round = 0; round < rounds; ++round) kernels<float>().read(memory.get(), n);
    return static_cast<double>(rounds * n) * sizeof(float);
  });
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
      "multiplies_bfloat16", [] { return fused_rnn::fast_bfloat16_kernels() != nullptr; },
      "Whether bfloat16 is multiplied as it is; elsewhere it is computed as float32.");
  m.def("fma_rate", &fused_rnn::fma_rate, pybind11::arg("dtype"), pybind11::arg("seconds"),
        "GF/s of fused multiply-adds in registers, one thread: the peak of the active set.");
  m.def("activation_rate", &fused_rnn::activation_rate, pybind11::arg("dtype"),
        pybind11::arg("seconds"), "1e9 sigmoids and tanhs a second, one thread, in L1.");
  m.def("read_rate", &fused_rnn::read_rate, pybind11::arg("bytes"), pybind11::arg("seconds"),
        "GB/s at which one thread reads a block of this size again and again.");
  pybind11::class_<fused_rnn::Frozen, std::shared_ptr<fused_rnn::Frozen>>(
      m, "Frozen",
      "The weights of a frozen module, as the ops take them, and what the kernels read in their "
      "place: packed at the first call, and at the next one after a change in place.")
      .def(pybind11::init<std::vector<at::Tensor>>(), pybind11::arg("params"))
      .def("sequence", &fused_rnn::Frozen::sequence, pybind11::arg("input"),
           pybind11::arg("states"), pybind11::arg("batch_sizes"), pybind11::arg("cell"),
           pybind11::arg("num_layers"), pybind11::arg("bidirectional"),
           "The op's results from the packed weights; None for calls that it has to take.")
      .def("cell", &fused_rnn::Frozen::cell, pybind11::arg("input"), pybind11::arg("states"),
           pybind11::arg("cell"), "The same of a single cell.")
      .def(pybind11::pickle([](const fused_rnn::Frozen& frozen) { return frozen.params(); },
                            [](std::vector<at::Tensor> params) {
                              return std::make_shared<fused_rnn::Frozen>(std::move(params));
                            }));
  if (PyModule_AddFunctions(m.ptr(), fused_rnn::direct_methods) != 0)
    throw pybind11::error_already_set();
}
