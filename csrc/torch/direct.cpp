// A short way for plain calls. A step of a small layer takes a microsecond or less; torch.ops takes
// three more to parse its arguments and to find, key by key, that nothing but autograd has an
// interest in the call. Here the same is asked at once: a call whose tensors carry no other key, in
// surroundings that add none, goes straight to autograd's function or to the kernels. For all
// others the answer is None, and the caller takes the long way, which also has the words for
// errors.

#include "torch/direct.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/squeeze.h>
#include <ATen/ops/transpose.h>
#include <ATen/ops/unsqueeze.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "torch/frozen.h"
#include "torch/ops.h"
#include "torch/problem.h"
#include "torch/surroundings.h"

namespace fused_rnn {
namespace {

using Tensors = c10::SmallVector<at::Tensor, 8>;

// A Python object known to be a plain tensor, or nothing.
const at::Tensor* plain_tensor(PyObject* object, const Surroundings& surroundings) {
  if (object == nullptr || !THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return surroundings.plain(tensor) ? &tensor : nullptr;
}

// What a torch.nn module keeps in its __dict__, by interned name: borrowed, null where it is not
// there.
class Attributes {
 public:
  explicit Attributes(PyObject* module) : dict_(PyObject_GenericGetDict(module, nullptr)) {
    if (dict_ == nullptr) PyErr_Clear();
  }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  ~Attributes() { Py_XDECREF(dict_); }

  PyObject* get(PyObject* name) const {
    return dict_ == nullptr ? nullptr : PyDict_GetItem(dict_, name);
  }
  std::optional<bool> flag(PyObject* name) const {
    PyObject* const value = get(name);
    if (value == Py_True) return true;
    if (value == Py_False) return false;
    return std::nullopt;
  }
  // A small integer; -1 for anything else.
  int64_t number(PyObject* name) const {
    PyObject* const value = get(name);
    if (value == nullptr || !PyLong_CheckExact(value)) return -1;
    const long long number = PyLong_AsLongLong(value);
    if (number == -1) PyErr_Clear();
    return number;
  }

 private:
  PyObject* dict_;
};

// The names, interned once.
struct Names {
  PyObject* mode = intern("mode");
  PyObject* input_size = intern("input_size");
  PyObject* num_layers = intern("num_layers");
  PyObject* bidirectional = intern("bidirectional");
  PyObject* batch_first = intern("batch_first");
  PyObject* dropout = intern("dropout");
  PyObject* training = intern("training");
  PyObject* flat_weights = intern("_flat_weights");
  PyObject* parameters = intern("_parameters");
  PyObject* packed = intern("_fused_rnn_packed");
  PyObject* cell_parameters[4] = {intern("weight_ih"), intern("weight_hh"), intern("bias_ih"),
                                  intern("bias_hh")};

  static const Names& all() {
    static const Names names;
    return names;
  }

 private:
  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
};

// The weights of a layer: torch's list of them, as long as it holds the registered parameters and
// nothing else is registered (layers.py says when it does not).
bool take_weights(const Attributes& module, const Surroundings& surroundings, Tensors& params) {
  PyObject* const flat = module.get(Names::all().flat_weights);
  PyObject* const registered = module.get(Names::all().parameters);
  if (flat == nullptr || !PyList_CheckExact(flat)) return false;
  if (registered == nullptr || !PyDict_CheckExact(registered)) return false;
  if (PyDict_GET_SIZE(registered) != PyList_GET_SIZE(flat)) return false;
  Py_ssize_t position = 0;
  PyObject* value = nullptr;
  for (Py_ssize_t i = 0; PyDict_Next(registered, &position, nullptr, &value); ++i) {
    if (PyList_GET_ITEM(flat, i) != value) return false;
    const at::Tensor* const param = plain_tensor(value, surroundings);
    if (param == nullptr) return false;
    params.push_back(*param);
  }
  return true;
}

// The parameters of a cell; without biases both are None.
bool take_cell_weights(const Attributes& module, const Surroundings& surroundings,
                       Tensors& params) {
  PyObject* const registered = module.get(Names::all().parameters);
  if (registered == nullptr || !PyDict_CheckExact(registered)) return false;
  int absent = 0;
  for (PyObject* const name : Names::all().cell_parameters) {
    PyObject* const value = PyDict_GetItem(registered, name);
    if (value == Py_None) {
      ++absent;
      continue;
    }
    const at::Tensor* const param = plain_tensor(value, surroundings);
    if (param == nullptr || absent > 0) return false;
    params.push_back(*param);
  }
  return absent == 0 || (absent == 2 && params.size() == 2);
}

// hx of a module: None, a tensor or, where the cell has two states, a pair of them.
bool take_states(PyObject* hx, bool pair, const Surroundings& surroundings, Tensors& states) {
  if (hx == Py_None) return true;
  const auto take = [&](PyObject* object) {
    const at::Tensor* const state = plain_tensor(object, surroundings);
    if (state != nullptr) states.push_back(*state);
    return state != nullptr;
  };
  if (!pair) return take(hx);
  if (PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2)
    return take(PyTuple_GET_ITEM(hx, 0)) && take(PyTuple_GET_ITEM(hx, 1));
  if (PyList_CheckExact(hx) && PyList_GET_SIZE(hx) == 2)
    return take(PyList_GET_ITEM(hx, 0)) && take(PyList_GET_ITEM(hx, 1));
  return false;
}

std::string_view text(PyObject* object) {
  Py_ssize_t size = 0;
  const char* data = nullptr;
  if (object != nullptr && PyUnicode_Check(object)) data = PyUnicode_AsUTF8AndSize(object, &size);
  if (data == nullptr) PyErr_Clear();  // Half of a surrogate pair has no UTF-8.
  return {data, static_cast<size_t>(size)};
}

// The ops' name of a layer's mode.
std::string_view cell_of_mode(std::string_view mode) {
  if (mode == "LSTM") return "lstm";
  if (mode == "GRU") return "gru";
  if (mode == "RNN_TANH") return "rnn_tanh";
  if (mode == "RNN_RELU") return "rnn_relu";
  return {};
}

// The arguments of an op.
struct Call {
  at::Tensor input;
  Tensors states, params;
  std::shared_ptr<Frozen> frozen;  // that has the params, or null
  std::string_view cell;
  int64_t num_layers = 1;
  bool bidirectional = false;
  bool single_cell = false;

  // What a module has in the place of parameters once it is frozen (frozen.py).
  bool take_frozen(const Attributes& module, const Surroundings& surroundings) {
    PyObject* const object = module.get(Names::all().packed);
    if (object == nullptr || !pybind11::isinstance<Frozen>(object)) return false;
    frozen = pybind11::cast<std::shared_ptr<Frozen>>(pybind11::handle(object));
    params.assign(frozen->params().begin(), frozen->params().end());
    if (params.size() < 2) return false;
    return std::all_of(params.begin(), params.end(),
                       [&](const at::Tensor& param) { return surroundings.plain(param); });
  }

  bool needs_graph() const { return fused_rnn::needs_graph(input, states, params); }

  // Other Python threads may run meanwhile if it takes longer than to let them.
  bool is_long() const {
    constexpr int64_t kMultiplyAdds = 100000;
    const int64_t rows = input.numel() / std::max<int64_t>(input.size(-1), 1);
    return rows * (params[0].numel() + params[1].numel()) > kMultiplyAdds;
  }

  std::vector<at::Tensor> run() const {
    std::optional<pybind11::gil_scoped_release> release;
    const auto let_others_run = [&] {
      if (is_long()) release.emplace();
    };
    if (needs_graph()) {
      let_others_run();
      return single_cell
                 ? cell_with_graph(input, states, params, cell)
                 : sequence_with_graph(input, states, params, {}, cell, num_layers, bidirectional);
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (frozen != nullptr) {
      const Problem p = single_cell ? Problem::cell(input, states, params, cell)
                                    : Problem::sequence(input, states, params, {}, cell, num_layers,
                                                        bidirectional);
      const std::shared_ptr<const PackedLayers> packed = frozen->packed(p);
      let_others_run();
      return infer(p, *packed);
    }
    let_others_run();
    return single_cell ? fused_rnn::cell(input, states, params, cell)
                       : sequence(input, states, params, {}, cell, num_layers, bidirectional);
  }
};

// h, or (h, c).
PyObject* as_states(std::vector<at::Tensor>& results, size_t first) {
  PyObject* const h = THPVariable_Wrap(std::move(results[first]));
  if (results.size() == first + 1) return h;
  return PyTuple_Pack(
      2, pybind11::reinterpret_steal<pybind11::object>(h).ptr(),
      pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(results[first + 1])))
          .ptr());
}

// layer(module, input, hx): forward of a layer on dense input, or None.
PyObject* layer(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 3) Py_RETURN_NONE;
  const Surroundings surroundings;
  const at::Tensor* const input = plain_tensor(arguments[1], surroundings);
  if (!surroundings.plain() || input == nullptr) Py_RETURN_NONE;
  const Names& names = Names::all();
  const Attributes module(arguments[0]);
  const auto bidirectional = module.flag(names.bidirectional);
  const auto batch_first = module.flag(names.batch_first);
  Call call{*input, {}, {}, nullptr, cell_of_mode(text(module.get(names.mode))), 1, false, false};
  call.num_layers = module.number(names.num_layers);
  const int64_t dim = input->dim();
  if (!bidirectional || !batch_first || call.cell.empty() || (dim != 2 && dim != 3) ||
      input->size(-1) != module.number(names.input_size) || input->numel() == 0 ||
      at::isReducedFloatingType(input->scalar_type()))
    Py_RETURN_NONE;
  call.bidirectional = *bidirectional;
  if (call.num_layers > 1 && module.flag(names.training) != false) {
    PyObject* const dropout = module.get(names.dropout);
    if (dropout == nullptr || !PyFloat_CheckExact(dropout) || PyFloat_AS_DOUBLE(dropout) != 0)
      Py_RETURN_NONE;
  }
  if (!take_states(arguments[2], call.cell == "lstm", surroundings, call.states)) Py_RETURN_NONE;
  if ((!take_weights(module, surroundings, call.params) || call.params.size() < 2) &&
      !call.take_frozen(module, surroundings))
    Py_RETURN_NONE;

  const bool transposed = dim == 3 && *batch_first;
  std::vector<at::Tensor> results;
  try {
    if (dim == 2) {
      call.input = at::unsqueeze(call.input, 1);
      for (at::Tensor& state : call.states) state = at::unsqueeze(state, 1);
    } else if (transposed) {
      call.input = at::transpose(call.input, 0, 1);
    }
    results = call.run();
    if (dim == 2) {
      for (at::Tensor& result : results) result = at::squeeze(result, 1);
    } else if (transposed) {
      results[0] = at::transpose(results[0], 0, 1);
    }
  } catch (const c10::Error&) {
    Py_RETURN_NONE;
  }
  const auto output =
      pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(results[0])));
  const auto states = pybind11::reinterpret_steal<pybind11::object>(as_states(results, 1));
  return PyTuple_Pack(2, output.ptr(), states.ptr());
  END_HANDLE_TH_ERRORS
}

// cell(module, input, hx, cell): forward of a cell, or None.
PyObject* single_cell(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 4) Py_RETURN_NONE;
  const Surroundings surroundings;
  const at::Tensor* const input = plain_tensor(arguments[1], surroundings);
  if (!surroundings.plain() || input == nullptr) Py_RETURN_NONE;
  const Attributes module(arguments[0]);
  Call call{*input, {}, {}, nullptr, text(arguments[3]), 1, false, true};
  if ((input->dim() != 1 && input->dim() != 2) || input->numel() == 0 ||
      at::isReducedFloatingType(input->scalar_type()) ||
      input->size(-1) != module.number(Names::all().input_size) ||
      !take_states(arguments[2], call.cell == "lstm", surroundings, call.states))
    Py_RETURN_NONE;
  if (!take_cell_weights(module, surroundings, call.params) &&
      !call.take_frozen(module, surroundings))
    Py_RETURN_NONE;

  const bool batched = input->dim() == 2;
  std::vector<at::Tensor> results;
  try {
    if (!batched) {
      call.input = at::unsqueeze(call.input, 0);
      for (at::Tensor& state : call.states) state = at::unsqueeze(state, 0);
    }
    results = call.run();
    if (!batched) {
      for (at::Tensor& result : results) result = at::squeeze(result, 0);
    }
  } catch (const c10::Error&) {
    Py_RETURN_NONE;
  }
  return as_states(results, 0);
  END_HANDLE_TH_ERRORS
}

// The calling convention of both is METH_FASTCALL, which PyMethodDef has no type for.
template <typename Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

PyMethodDef direct_methods[] = {
    {"layer", as_method(layer), METH_FASTCALL,
     "layer(module, input, hx): a layer's results on plain dense input; None for any other call."},
    {"cell", as_method(single_cell), METH_FASTCALL,
     "cell(module, input, hx, cell): a cell's results on plain input; None for any other call."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fused_rnn
