"""The one place that decides which way a call goes, and the words for it.

Plain calls that fit are fused without coming here (`_ops.direct_layer` and `direct_cell`). Of the
others, a call is fused when `obstacle` says nothing and the operator accepts the sizes. `obstacle`
asks about the surroundings and the input only; the operator itself checks every size, dtype and
device in C++ before it computes. When it refuses, `layer_misfit` and `cell_misfit` say in Python
what did not fit, and torch.nn's implementation takes the call and raises its own error or, where
torch is more lenient, answers. An error that no misfit explains is passed on.

Some obstacles are overcome: transforms by the reference, autocast by computing in one type. And
some calls without an obstacle go to torch, which is faster at them: `layer_types` and `cell_types`
say so. Code that is being compiled asks `traced_obstacle` instead.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils._device import DeviceContext

from . import export
from ._narrow import NARROW, are_castable, cast_to, computed_in, result_types, torch_is_ahead
from ._ops import extension
from ._traits import TRAITS

CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
"""torch.nn's name of a mode: the operators' name of the cell."""

PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Types that hold their data themselves; any other subclass may compute in its own way."""

WIDE = frozenset({torch.float32, torch.float64})
DTYPES = WIDE | NARROW

TRANSFORM = "a torch.func transform is active, and the fused operators have no rule for those"
FORWARD_AD = "forward-mode derivatives are taken, and the fused operators have no formula for them"
TRACE = "torch.jit.trace is recording, and its record should hold torch's own operators"
AUTOCAST = "autocast is on, and torch decides what it casts"
AHEAD = "torch's own kernels for this type are faster at this size"
MODE = "a __torch_function__ mode is active, and it may want to see torch's own functions"
EXPORT = "torch.export is recording, and its program should run without this package"

DIFFERENTIABLE = frozenset({TRANSFORM, FORWARD_AD})
"""Obstacles that the differentiable reference overcomes and torch.nn does not always."""

OVERCOME = DIFFERENTIABLE | {None, AUTOCAST}
"""What `obstacle` says of calls that need not go to torch."""

_transforming = torch._C._are_functorch_transforms_active
_tracing = torch._C._is_tracing
_any_autocast = torch._C._is_any_autocast_enabled
_modes = torch._C._len_torch_function_stack


class Fused:
    """Base of the package's modules, by which they are told from torch.nn's.

    Each of them has two bases: one that derives from this class, and torch.nn's class after it.
    This class comes last among the bases of the former and has no attributes, so that objects are
    laid out as torch.nn's are and can change their class.
    """

    __slots__ = ()

    def _converts_weights(self, input: Tensor) -> bool:
        """Whether a call converts the weights to the type that it is computed in."""
        return True

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles in this module's place: torch.nn's module on the same
        parameters. Where the module is part of a model, torch.jit.script puts it there for good."""
        plain = type(self).__bases__[-1]
        if plain.__module__ != torch.nn.RNNBase.__module__:
            return self  # A user's subclass, whose own forward is to be compiled.
        twin: Any = object.__new__(plain)
        twin.__dict__.update(self.__dict__)
        return twin


def obstacle(
    input: Tensor,
    ranks: tuple[int, ...],
    input_size: int,
    states: Sequence[Tensor],
    params: Sequence[Tensor] = (),
) -> str | None:
    """Why a call cannot be fused, None where nothing speaks against it.

    Args:
        input: the input, packed data included.
        ranks: numbers of dimensions that input may have.
        input_size: what its last dimension must be.
        states: as the operators take them.
        params: likewise, or none: reading a module's weights may compute them and advance a random
            generator, which should not happen twice where torch reads them as well.
    """
    if _transforming():
        return TRANSFORM
    # The level is read as an attribute because the module rebinds it.
    if forward_ad._current_level >= 0:
        return FORWARD_AD
    if _tracing():
        return TRACE
    if _any_autocast() and torch.is_autocast_enabled("cpu"):
        return AUTOCAST
    if _modes() and _foreign_mode():
        return MODE
    if type(input) not in PLAIN:
        return f"the input is a {type(input).__name__}, not a plain tensor"
    if not PLAIN.issuperset(map(type, params)):
        return "a weight is not a plain tensor"
    if states and not PLAIN.issuperset(map(type, states)):
        return "hx is not made of plain tensors"
    if not input.is_cpu:
        return f"the input is on {input.device}, and the kernels are the CPU's"
    if input.dtype not in DTYPES:
        return f"the input is {input.dtype}, and the kernels are for floating point"
    shape = input.shape
    if len(shape) not in ranks:
        return f"the input has {len(shape)} dimensions"
    if shape[-1] != input_size:
        return f"the input has {shape[-1]} features, and input_size is {input_size}"
    if 0 in shape:
        return "the input is empty"
    return None


def layer_types(
    module: Any,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    reason: str | None,
) -> list[torch.dtype] | None:
    """Whether a layer's call is to be tried here, and the types of its results.

    Args:
        module, input, batch_sizes, states: as of `layer_misfit`.
        reason: what `obstacle` said.

    Returns:
        None where torch's own implementation is to take the call: for the reason, or because it is
        faster. Under autocast the types of h and, for an LSTM, c that torch gives; otherwise
        nothing, and they are those of the input.
    """
    if reason not in OVERCOME:
        return None
    types = _layer_autocast_types(module, input, batch_sizes, states, reason)
    if types is None or _layer_ahead(module, input, batch_sizes, reason, types):
        return None
    return types


def _layer_autocast_types(
    module: Any,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    reason: str | None,
) -> list[torch.dtype] | None:
    """`result_types` of a layer, nothing without autocast."""
    if reason != AUTOCAST:
        return []
    cell = CELLS[module.mode]
    onednn = cell == "lstm" and batch_sizes is None
    if onednn and not torch.backends.mkldnn.enabled:
        return None
    projected = bool(module.proj_size)
    return _autocast_types(input, states, cell, projected=projected, onednn=onednn)


def cell_types(
    module: Any, input: Tensor, states: Sequence[Tensor], cell: str, reason: str | None
) -> list[torch.dtype] | None:
    """The same of a cell; `cell` is the operators' name of it."""
    if reason not in OVERCOME:
        return None
    types = _autocast_types(input, states, cell) if reason == AUTOCAST else []
    if types is None or _cell_ahead(module, input, cell, reason, types):
        return None
    return types


def _layer_ahead(
    module: Any,
    input: Tensor,
    batch_sizes: Tensor | None,
    reason: str | None,
    types: Sequence[torch.dtype],
) -> bool:
    """Whether torch's layer multiplies in a narrow type and is faster than the kernels; `types` are
    those of the results under autocast."""
    dtype = _narrow_type(input, reason)
    if dtype is None:
        return False
    rows = input.numel() // max(module.input_size, 1)
    if batch_sizes is not None:
        batch = rows // max(batch_sizes.numel(), 1)
    elif input.dim() == 3:
        batch = input.shape[0 if module.batch_first else 1]
    else:
        batch = 1
    onednn = module.mode == "LSTM" and batch_sizes is None and not module.proj_size
    weights = _number_of_weights(module, CELLS[module.mode])
    computed = cast_to(types, weights, rows) if types else computed_in(dtype)
    converts = bool(types) or module._converts_weights(input)
    return torch_is_ahead(dtype, computed, weights, rows, batch, converts, onednn)


def _cell_ahead(
    module: Any,
    input: Tensor,
    cell: str,
    reason: str | None,
    types: Sequence[torch.dtype],
) -> bool:
    """The same of a cell. An unknown one is the operator's to refuse."""
    dtype = _narrow_type(input, reason)
    if dtype is None or cell not in TRAITS:
        return False
    rows = input.numel() // max(module.input_size, 1)
    weights = _number_of_weights(module, cell)
    computed = cast_to(types, weights, rows) if types else computed_in(dtype)
    converts = bool(types) or module._converts_weights(input)
    return torch_is_ahead(dtype, computed, weights, rows, rows, converts, onednn=False)


def _narrow_type(input: Tensor, reason: str | None) -> torch.dtype | None:
    """The narrow type that torch would multiply in, None where it would not."""
    if reason not in (None, AUTOCAST):
        return None
    dtype = torch.get_autocast_dtype("cpu") if reason == AUTOCAST else input.dtype
    return dtype if dtype in NARROW else None


def _number_of_weights(module: Any, cell: str) -> int:
    """Of a layer in one direction. They are not read, which could compute them."""
    hidden: int = module.hidden_size
    inputs: int = module.input_size
    return TRAITS[cell].gates * hidden * (inputs + hidden)


def _autocast_types(
    input: Tensor, states: Sequence[Tensor], cell: str, **more: bool
) -> list[torch.dtype] | None:
    if not PLAIN.issuperset(map(type, [input, *states])) or input.numel() == 0:
        return None
    return result_types(input, states, cell, **more)


def _foreign_mode() -> bool:
    """True where a mode other than torch.device's is active: that one acts on factories alone."""
    stack = (torch._C._get_function_stack_at(index) for index in range(_modes()))
    return any(type(mode) is not DeviceContext for mode in stack)


def _read_exporting() -> bool:
    return bool(torch.compiler._is_exporting_flag)


# Before torch 2.13 Dynamo takes torch's function for true in every compilation, but it does read
# the flag. (From then on reading that would be a guard, and an export elsewhere compile again.)
is_exporting = torch.compiler.is_exporting if torch.__version__ >= "2.13" else _read_exporting
"""torch.compiler.is_exporting, as Dynamo understands it."""


def is_traced() -> bool:
    """True where torch.compile or torch.export records this very code. is_compiling(), which is
    cheaper to ask first, is true beside a compilation as well: in other threads, for one."""
    return torch.compiler.is_dynamo_compiling() or is_exporting()


def traced_obstacle(input: Tensor, ranks: tuple[int, ...]) -> str | None:
    """`obstacle` for code under torch.compile and torch.export, in terms that both can follow.

    Tensors are fakes of some subclass there and sizes may be symbols, so their types are not asked.
    """
    if is_exporting() and not export.fused:
        return EXPORT
    if _transforming():
        return TRANSFORM
    if torch.is_autocast_enabled("cpu"):
        return AUTOCAST
    if input.device.type != "cpu":
        return f"the input is on {input.device}, and the kernels are the CPU's"
    if input.dtype not in WIDE:
        return f"the input is {input.dtype}, and compiled calls are fused in float32 and float64"
    if input.dim() not in ranks:
        return f"the input has {input.dim()} dimensions"
    return None


def as_states(hx: Any, cell: str) -> list[Tensor]:
    """hx of a module as the operators take it; what makes no sense is left to their checks.

    No states mean zeros to the operators, so an empty hx must not look like None.
    """
    if hx is None:
        return []
    if cell == "lstm" and isinstance(hx, (tuple, list)) and hx:
        return list(hx)
    return [hx]


def symbolic_call(module: Any, torch_forward: Any, input: torch.fx.Proxy, hx: Any) -> Any:
    """Under torch.fx.symbolic_trace a layer is one node of the graph, as torch.nn's are."""
    tracer: Any = input.tracer
    if tracer.root is module:
        return torch_forward(input, hx)
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, {})


def _tensor_misfit(name: str, tensor: Any, shape: Sequence[int], like: Tensor) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name} is a {type(tensor).__name__}"
    if tensor.device != like.device:
        return f"{name} is on {tensor.device}, and the input on {like.device}"
    if tensor.layout != torch.strided:
        return f"{name} has the layout {tensor.layout}"
    if tensor.dtype != like.dtype:
        return f"{name} is {tensor.dtype}, and the input {like.dtype}"
    if list(tensor.shape) != list(shape):
        return f"{name} must have the size {list(shape)}, got {list(tensor.shape)}"
    return None


def _first_misfit(
    names: Sequence[str],
    tensors: Sequence[Any],
    shapes: Sequence[Sequence[int]],
    like: Tensor,
) -> str | None:
    found = map(_tensor_misfit, names, tensors, shapes, [like] * len(names))
    return next((misfit for misfit in found if misfit is not None), None)


def state_sizes(module: Any, batch: int) -> list[tuple[int, int, int]]:
    """Sizes of hx of a layer: h0 and, of an LSTM, c0."""
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    h = (blocks, batch, module.proj_size or module.hidden_size)
    return [h, (blocks, batch, module.hidden_size)] if module.mode == "LSTM" else [h]


def _weight_sizes(module: Any) -> list[tuple[int, ...]]:
    """Sizes of the parameters of a layer, in the order of the operators."""
    directions = 2 if module.bidirectional else 1
    hidden, width = module.hidden_size, module.proj_size or module.hidden_size
    rows = TRAITS[CELLS[module.mode]].gates * hidden
    sizes: list[tuple[int, ...]] = []
    for layer in range(module.num_layers):
        of_direction: list[tuple[int, ...]] = [
            (rows, directions * width if layer else module.input_size),
            (rows, width),
        ]
        of_direction += [(rows,), (rows,)] if module.bias else []
        of_direction += [(width, hidden)] if module.proj_size else []
        sizes += of_direction * directions
    return sizes


def layer_misfit(
    module: Any,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
) -> str | None:
    """What of a layer's tensors does not fit together; None where all does.

    Args:
        module: a torch.nn.RNNBase.
        input: [T, B, I], [B, T, I] with batch_first, [T, I], or packed data [N, I].
        batch_sizes: of packed data.
        states: as given to the module: without a batch dimension where the input has none.
        params: in the order of the operators.
    """
    packed = batch_sizes is not None
    if input.dim() not in ((2,) if packed else (2, 3)):
        return f"the input has {input.dim()} dimensions"
    if input.layout != torch.strided:
        return f"the input has the layout {input.layout}"
    if input.shape[-1] != module.input_size:
        return f"the input has {input.shape[-1]} features, and input_size is {module.input_size}"
    if input.numel() == 0:
        return "the input is empty"

    shapes = _weight_sizes(module)
    if len(params) != len(shapes):
        return f"there must be {len(shapes)} weights, got {len(params)}"
    misfit = _first_misfit(module._flat_weights_names, params, shapes, input)
    if misfit is not None or not states:
        return misfit

    if batch_sizes is not None:
        batch = int(batch_sizes[0])
    elif input.dim() == 3:
        batch = input.shape[0 if module.batch_first else 1]
    else:
        batch = 1
    sizes: list[tuple[int, ...]] = list(state_sizes(module, batch))
    if not packed and input.dim() == 2:
        sizes = [(blocks, features) for blocks, _, features in sizes]
    if len(states) != len(sizes):
        return f"hx must hold {len(sizes)} tensors, got {len(states)}"
    return _first_misfit(["hidden[0]", "hidden[1]"][: len(sizes)], states, sizes, input)


def cell_misfit(
    module: Any, input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> str | None:
    """What of a cell's tensors does not fit together; None where all does.

    Args:
        module: a torch.nn.RNNCellBase.
        input: [B, I] or [I].
        states: as given to the module, [B, H] or [H] each.
        params: in the order of the operators.
        cell: the operators' name of the cell.
    """
    if input.dim() not in (1, 2):
        return f"the input has {input.dim()} dimensions"
    if input.layout != torch.strided:
        return f"the input has the layout {input.layout}"
    if input.shape[-1] != module.input_size:
        return f"the input has {input.shape[-1]} features, and input_size is {module.input_size}"
    if input.numel() == 0:
        return "the input is empty"

    if cell not in CELLS.values():
        return f"the nonlinearity {module.nonlinearity} is unknown"
    hidden = module.hidden_size
    rows = TRAITS[cell].gates * hidden
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: len(params)]
    shapes: list[tuple[int, ...]] = [(rows, module.input_size), (rows, hidden), (rows,), (rows,)]
    if len(params) not in (2, 4):
        return "there must be two biases or none"
    misfit = _first_misfit(names, params, shapes[: len(params)], input)
    if misfit is not None or not states:
        return misfit

    count = TRAITS[cell].states
    if len(states) != count:
        return f"hx must hold {count} tensors, got {len(states)}"
    size = (*input.shape[:-1], hidden)
    return _first_misfit(["hx[0]", "hx[1]"][:count], states, [size] * count, input)


def check_devices(input: Tensor, others: Sequence[Any]) -> None:
    """Raises RuntimeError, in torch's words, where a cell's tensors are on meta and elsewhere.

    torch's cells answer such calls with uninitialised memory; of other devices they complain.
    """
    devices = {tensor.device for tensor in (input, *others) if isinstance(tensor, Tensor)}
    if len(devices) > 1 and any(device.type == "meta" for device in devices):
        names = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(
            "Expected all tensors to be on the same device, "
            f"but found at least two devices, {names}!"
        )


def check_weights(module: Any, params: Sequence[Any]) -> None:
    """Raises RuntimeError where an LSTM has a weight of a wrong size.

    torch gives those to oneDNN without a look, which reads past their ends and answers.
    """
    if module.mode == "LSTM":
        for name, param, size in zip(
            module._flat_weights_names, params, _weight_sizes(module), strict=False
        ):
            if isinstance(param, Tensor) and tuple(param.shape) != size:
                raise RuntimeError(f"Expected {name} size {size}, got {list(param.shape)}")


def check_packed(module: Any, data: Tensor, batch_sizes: Tensor, states: Sequence[Tensor]) -> None:
    """Raises RuntimeError for a packed call that torch would not refuse, or not in clear words.

    torch trusts batch_sizes, and a packed LSTM's input and hx as well: wrong ones are answered with
    nonsense or crash. What torch does check is left to it.
    """
    if type(batch_sizes) is not Tensor or not isinstance(data, Tensor):
        return
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        raise RuntimeError(
            "batch_sizes must be a one-dimensional tensor of torch.int64, got "
            f"{batch_sizes.dim()} dimensions of {batch_sizes.dtype}"
        )
    sizes = batch_sizes.tolist()
    if not sizes:
        return
    module.check_input(data, batch_sizes)
    for step, size in enumerate(sizes):
        if size <= 0:
            raise RuntimeError(f"batch_sizes must be positive, got {size} at step {step}")
        if step and size > sizes[step - 1]:
            raise RuntimeError(
                "batch_sizes must be sorted in descending order, got "
                f"{sizes[step - 1]} at step {step - 1} and {size} at step {step}"
            )
    if sum(sizes) != data.shape[0]:
        raise RuntimeError(
            f"batch_sizes must add up to the number of rows, {data.shape[0]}, got {sum(sizes)}"
        )

    expected = state_sizes(module, sizes[0])
    if len(states) != len(expected) or not all(isinstance(state, Tensor) for state in states):
        return
    for index, (state, size) in enumerate(zip(states, expected, strict=True)):
        if tuple(state.shape) != size:
            name = f"hidden[{index}]" if module.mode == "LSTM" else "hidden"
            raise RuntimeError(f"Expected {name} size {size}, got {list(state.shape)}")
        if state.dtype != data.dtype and not _any_autocast():
            raise RuntimeError(
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{data.dtype} and hidden tensor with {state.dtype}"
            )


class Explanation(str):
    """What `explain` says: a sentence, with its parts as attributes.

    Attributes:
        way: "fused", "reference", "torch" or "error".
        reason: why; for "fused", why this instruction set.
    """

    __slots__ = ("reason", "way")

    way: str
    reason: str

    def __new__(cls, way: str, text: str, reason: str) -> "Explanation":
        self = super().__new__(cls, f"{way}: {text}")
        self.way = way
        self.reason = reason
        return self


def explain(module: torch.nn.Module, input: Any, hx: Any = None) -> Explanation:
    """Which way `module(input, hx)` goes and why, without running it.

    Args:
        module: a recurrent layer or cell of this package or of torch.nn.
        input, hx: what the module would be called with, in the surroundings of this very call
            (autocast, transforms and so on).

    Raises:
        TypeError: for any other module.
    """
    is_layer = isinstance(module, torch.nn.RNNBase)
    if not is_layer and not isinstance(module, torch.nn.RNNCellBase):
        raise TypeError(f"explain takes a recurrent layer or cell, got {type(module).__name__}")
    name = type(module).__name__
    if not isinstance(module, Fused):
        hint = f"{name} is not one of fused_rnn's modules; fused_rnn.accelerate makes it one"
        return Explanation("torch", hint, hint)

    find = _explain_layer if is_layer else _explain_cell
    reason, misfit = find(module, input, hx)
    if reason == AUTOCAST:
        wide = _without_autocast(module, input, hx)
        if wide is not None:
            with torch.autocast("cpu", enabled=False):
                return explain(module, *wide)
    if misfit is not None and misfit.startswith(_ERROR):
        error = misfit.removeprefix(_ERROR)
        return Explanation("error", error, error)
    if misfit is not None and (reason is None or reason in DIFFERENTIABLE):
        return Explanation("torch", f"{misfit}, so torch's {name} takes the call", misfit)
    if reason is None:
        config = extension.config()
        why = config["isa_reason"]
        return Explanation("fused", f"the {config['isa_active']} kernels run ({why})", why)
    if reason in DIFFERENTIABLE:
        return Explanation("reference", f"{reason}, so plain PyTorch operators run", reason)
    return Explanation("torch", f"{reason}, so torch's {name} takes the call", reason)


# Begins a misfit that is raised by this package and not left to torch.
_ERROR = "raises "


def _without_autocast(module: Any, input: Any, hx: Any) -> tuple[Any, Any] | None:
    """input and hx as they are computed with where autocast is no obstacle."""
    packed = isinstance(input, PackedSequence)
    data, batch_sizes = (input.data, input.batch_sizes) if packed else (input, None)
    is_layer = isinstance(module, torch.nn.RNNBase)
    cell = CELLS[module.mode] if is_layer else module._cell()
    states = as_states(hx, cell)
    types = (
        layer_types(module, data, batch_sizes, states, AUTOCAST)
        if is_layer
        else cell_types(module, data, states, cell, AUTOCAST)
    )
    if types is None or not are_castable(module._weights() if is_layer else module._params()):
        return None
    data = data.float()
    wide = [state.float() for state in states]
    hx = None if hx is None else tuple(wide) if len(wide) > 1 else wide[0]
    return input._replace(data=data) if packed else data, hx


def _explain_layer(module: Any, input: Any, hx: Any) -> tuple[str | None, str | None]:
    """`obstacle` and misfit of a layer's call."""
    batch_sizes = None
    if isinstance(input, PackedSequence):
        input, batch_sizes = input.data, input.batch_sizes
    if not isinstance(input, Tensor):
        return f"the input is a {type(input).__name__}, not a plain tensor", None
    states = as_states(hx, CELLS[module.mode])
    params = module._weights()
    ranks = (2, 3) if batch_sizes is None else (2,)
    reason = obstacle(input, ranks, module.input_size, states, params)
    if reason == TRACE:
        return reason, None  # Sizes are values there, and looking at one is recorded.
    misfit = layer_misfit(module, input, batch_sizes, states, params)
    types = _layer_autocast_types(module, input, batch_sizes, states, reason)
    if types is not None and _layer_ahead(module, input, batch_sizes, reason, types):
        reason = AHEAD
    try:
        if batch_sizes is not None:
            check_packed(module, input, batch_sizes, states)
        if misfit is not None and reason is None:
            check_weights(module, params)
    except (RuntimeError, ValueError) as error:
        return reason, f"{_ERROR}{type(error).__name__}: {error}"
    return reason, misfit


def _explain_cell(module: Any, input: Any, hx: Any) -> tuple[str | None, str | None]:
    """`obstacle` and misfit of a cell's call."""
    if not isinstance(input, Tensor):
        return f"the input is a {type(input).__name__}, not a plain tensor", None
    cell = module._cell()
    states = as_states(hx, cell)
    params = module._params()
    reason = obstacle(input, (1, 2), module.input_size, states, params)
    if reason == TRACE:
        return reason, None
    misfit = cell_misfit(module, input, states, params, cell)
    types = _autocast_types(input, states, cell) if reason == AUTOCAST else []
    if types is not None and _cell_ahead(module, input, cell, reason, types):
        reason = AHEAD
    try:
        if misfit is not None:
            check_devices(input, [*states, *params])
    except RuntimeError as error:
        return reason, f"{_ERROR}RuntimeError: {error}"
    return reason, misfit
