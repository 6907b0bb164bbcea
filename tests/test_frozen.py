"""freeze and thaw: the same results from weights that are packed once, and what a module without
parameters still does."""

import copy
import gc
import io
import operator
import os
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fused_rnn
import tracing
from cases import (
    DTYPES,
    KINDS,
    LAYER_CASES,
    TOLERANCE,
    Case,
    assert_close,
    flatten,
    module_call,
    run_with_grads,
    threads,
)
from fused_rnn import _C
from fused_rnn.frozen import Frozen
from test_cells import SHAPES, draw, hx_of
from test_cells import make as make_cell

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def frozen_and_plain(case: Case, dtype: torch.dtype) -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = case.module(nn, dtype)
    return fused_rnn.freeze(copy.deepcopy(plain)), plain


def is_packed(module: Any, *arguments: Any) -> bool:
    """Whether a call is computed from the packed weights: then it does not see that the others have
    changed behind the module's back."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        before = flatten(module(*arguments))
        for weight in module._weights():
            weight.data.zero_()
        after = flatten(module(*arguments))
    return all(map(torch.equal, before, after))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layer(case: Case, dtype: torch.dtype) -> None:
    frozen, plain = frozen_and_plain(case, dtype)
    x, states = case.tensors(dtype)
    with torch.no_grad():
        actual = flatten(frozen(case.pack(x), case.hx_of(states)))
        again = flatten(frozen(case.pack(x), case.hx_of(states)))
        with threads(1):
            expected = flatten(plain(case.pack(x), case.hx_of(states)))
    for one, other, third in zip(actual, expected, again, strict=True):
        assert_close("result", one, other, TOLERANCE[dtype])
        assert torch.equal(one, third)
    assert is_packed(frozen, case.pack(x), case.hx_of(states))


@pytest.mark.parametrize("case", LAYER_CASES[::3], ids=str)
def test_gradients_of_inputs(case: Case) -> None:
    frozen, plain = frozen_and_plain(case, torch.float64)
    x, states = case.tensors(torch.float64)
    actual = run_with_grads(module_call(case, frozen), x, states, [])
    with threads(1):
        expected = run_with_grads(module_call(case, plain), x, states, [])
    for one, other in zip(actual, expected, strict=True):
        assert_close("result", one, other, 1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cell(kind: str, shape: tuple[int, int, int], bias: bool, dtype: torch.dtype) -> None:
    B, I, H = shape  # noqa: E741
    plain = make_cell(kind, nn, I, H, bias=bias, dtype=dtype)
    frozen = fused_rnn.freeze(copy.deepcopy(plain))
    x, states = draw(kind, B, I, H, dtype)
    for hx in (hx_of(kind, states), None):
        with torch.no_grad():
            actual, expected = flatten(frozen(x, hx)), flatten(plain(x, hx))
        for one, other in zip(actual, expected, strict=True):
            assert_close("result", one, other, TOLERANCE[dtype])
        assert is_packed(frozen, x, hx)
    actual, expected = (
        run_with_grads(lambda x, s, cell=cell: cell(x, hx_of(kind, s)), x, states, [])
        for cell in (frozen, plain)
    )
    for one, other in zip(actual, expected, strict=True):
        assert_close("with gradients", one, other, TOLERANCE[dtype])


# Regimes that the kernels have for weights they may read in place, which packed ones are not.
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 64, 300),
        (1, 20, 300, 300),
        (3, 1, 40, 100),
        (3, 7, 20, 18),
        (12, 1, 300, 300),
        (4, 2, 2100, 257),
        (2, 7, 100, 150),
        (3, 3, 60, 200),
        (30, 1, 40, 192),
        (700, 4, 2800, 257),  # input products in chunks
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_large_weights(kind: str, shape: tuple[int, int, int, int]) -> None:
    case = Case(kind, *shape)
    frozen, plain = frozen_and_plain(case, torch.float32)
    x, states = case.tensors(torch.float32)
    with torch.no_grad():
        actual = flatten(frozen(x, case.hx_of(states)))
        expected = flatten(plain(x, case.hx_of(states)))
    for one, other in zip(actual, expected, strict=True):
        assert_close("result", one, other, 2e-5)


def test_every_instruction_set_has_its_own_packing() -> None:
    case = Case("LSTM", 5, 3, 7, 33, L=2, bidirectional=True)
    frozen, plain = frozen_and_plain(case, torch.float64)
    x, states = case.tensors(torch.float64)
    expected = flatten(plain(x, states))
    try:
        for isa in [*_C.config()["isa_available"]] * 2:
            _C.set_isa(isa)
            with torch.no_grad():
                actual = flatten(frozen(x, states))
            for one, other in zip(actual, expected, strict=True):
                assert_close(isa, one, other.detach(), 1e-10)
    finally:
        _C.set_isa(None)


def test_first_calls_of_many_threads() -> None:
    layer = nn.LSTM(64, 65, num_layers=2)
    x = torch.randn(3, 2, 64)
    with torch.no_grad():
        expected = layer(x)[0]
        for _ in range(10):
            frozen = fused_rnn.freeze(copy.deepcopy(layer))
            frozen._pack()  # At the first of these calls.

            def call(_: int, frozen: Any = frozen) -> Tensor:
                with torch.no_grad():
                    return frozen(x)[0]

            with ThreadPoolExecutor(4) as pool:
                for output in pool.map(call, range(8)):
                    assert_close("output", output, expected, 2e-5)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.LSTM(4, 6, num_layers=2, bidirectional=True, dropout=0.5)
        self.again = self.encoder
        self.cell = fused_rnn.GRUCell(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.encoder(self.embed(x))[0][-1])


def test_a_model_there_and_back() -> None:
    model = Model().eval()
    model.encoder.extra = nn.Parameter(torch.zeros(1))
    model.cell.weight_hh.tag = "mine"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parameters = list(model.parameters())
    x = torch.randn(7, 2, 3)
    expected = model(x).detach()
    identities = [id(m) for m in model.modules()]
    names = [name for name, _ in model.named_parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encoder.weight_hh_l0.requires_grad_(False)

    assert fused_rnn.freeze(model) is model
    assert fused_rnn.freeze(model) is model
    assert [id(m) for m in model.modules()] == identities
    assert isinstance(model.encoder, Frozen)
    assert isinstance(model.encoder, fused_rnn.LSTM)
    assert isinstance(model.encoder, nn.LSTM)
    assert repr(model.encoder).startswith("FrozenLSTM(4, 6, num_layers=2")
    assert model.again is model.encoder
    left = ["embed.weight", "embed.bias", "encoder.extra"]
    assert [name for name, _ in model.named_parameters()] == left
    assert_close("frozen", model(x).detach(), expected, 2e-5)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    assert fused_rnn.thaw(model) is model
    assert fused_rnn.thaw(model) is model
    assert type(model.encoder) is fused_rnn.LSTM
    assert type(model.cell) is fused_rnn.GRUCell
    assert [name for name, _ in model.named_parameters()] == names
    assert all(map(operator.is_, model.parameters(), parameters))
    assert model.cell.weight_hh.tag == "mine"
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "encoder.weight_hh_l0"
    ]
    assert_close("thawed", model(x).detach(), expected, 2e-5)
    model(x).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {
        "encoder.weight_hh_l0",
        "encoder.extra",
    }
    optimizer.step()
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_root_itself_and_restore(name: str) -> None:
    module = getattr(nn, name)(3, 4)
    x = torch.randn(2, 3)
    expected = flatten(module(x))[0]
    assert fused_rnn.freeze(module) is module
    assert type(module).__name__ == f"Frozen{name}"
    assert fused_rnn.accelerate(module) is module
    assert type(module).__name__ == f"Frozen{name}"
    assert not list(module.parameters())
    assert not flatten(module(x))[0].requires_grad
    assert type(fused_rnn.restore(module)) is getattr(nn, name)
    assert torch.equal(flatten(module(x))[0], expected)


@pytest.mark.parametrize("how", ["in place", "data", "in data", "fused optimizer", "copies"])
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_weights_are_a_snapshot(name: str, how: str) -> None:
    module = getattr(fused_rnn, name)(3, 4)
    parameters = list(module.parameters())
    hx = None if name == "LSTM" else torch.randn(2, 4)
    x = torch.randn(2, 3)
    expected = flatten(module(x, hx))[0].detach()
    fused_rnn.freeze(module)
    compiled = torch.compile(module, backend="aot_eager")

    def run() -> list[Tensor]:
        transformed = torch.func.vmap(lambda x: flatten(module(x, hx))[0])(x[None])[0]
        return [flatten(module(x, hx))[0], flatten(compiled(x, hx))[0], transformed]

    run()
    with torch.no_grad():
        if how == "in place":
            parameters[1].mul_(3)
        elif how == "data":
            parameters[1].data = 3 * parameters[1]
        elif how == "in data":
            parameters[1].data.mul_(3)
        elif how == "fused optimizer":
            parameters[1].grad = -2 * parameters[1]
            torch.optim.SGD(parameters, 1.0, fused=True).step()
        else:
            list(module.state_dict().values())[1].mul_(3)
            getattr(module, "weight_hh_l0" if name == "LSTM" else "weight_hh").mul_(3)
    for output in run():
        assert_close("output", output, expected, 2e-5)
    # What is thawed has the weights it had frozen, in the parameters that the list still holds.
    fused_rnn.thaw(module)
    assert all(map(operator.is_, module.parameters(), parameters))
    assert_close("thawed", flatten(module(x, hx))[0].detach(), expected, 2e-5)


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_what_changes_weights_is_seen(name: str) -> None:
    suffix = "" if name.endswith("Cell") else "_l0"
    frozen, other = (getattr(fused_rnn, name)(3, 4) for _ in range(2))
    x = torch.randn(2, 3)
    flatten(fused_rnn.freeze(frozen)(x))
    frozen.load_state_dict(other.state_dict())
    assert_close("loaded", flatten(frozen(x))[0], flatten(other(x))[0].detach(), 2e-5)
    doubled = {name: 2 * value for name, value in other.state_dict().items()}
    frozen.load_state_dict(doubled, assign=True)
    other.load_state_dict(doubled)
    for value in doubled.values():
        value.zero_()
    assert_close("assigned", flatten(frozen(x))[0], flatten(other(x))[0].detach(), 2e-5)
    assert is_packed(frozen, x)

    frozen.to(torch.float64), other.double()
    assert frozen.state_dict()[f"weight_hh{suffix}"].dtype == torch.float64
    assert_close(
        "double", flatten(frozen(x.double()))[0], flatten(other(x.double()))[0].detach(), 1e-10
    )
    assert is_packed(frozen, x.double())
    frozen.share_memory()
    assert_close(
        "shared", flatten(frozen(x.double()))[0], flatten(other(x.double()))[0].detach(), 1e-10
    )

    with pytest.raises(AttributeError, match=r"weight_hh\w* of a FrozenGRU(Cell)? cannot be set"):
        setattr(frozen, f"weight_hh{suffix}", nn.Parameter(torch.zeros(12, 4)))
    with pytest.raises(RuntimeError, match="no parameters to reset"):
        frozen.reset_parameters()
    with pytest.raises(RuntimeError, match="size mismatch"):
        frozen.load_state_dict(getattr(nn, name)(3, 5).state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"more"'):
        frozen.load_state_dict(frozen.state_dict() | {"more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*bias_ih"):
        frozen.load_state_dict({k: v for k, v in frozen.state_dict().items() if "bias_ih" not in k})
    with pytest.raises(AttributeError, match="nothing"):
        frozen.nothing  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_and_pickles(name: str, how: str) -> None:
    module = fused_rnn.freeze(getattr(nn, name)(3, 4))
    module.note = "mine"
    x = torch.randn(2, 3)
    expected = flatten(module(x))
    if how == "deepcopy":
        copied = copy.deepcopy(module)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert copied.note == "mine"
    assert is_packed(copied, x)
    assert all(map(torch.equal, flatten(copied(x)), expected))
    copied.load_state_dict(getattr(nn, name)(3, 4).state_dict())
    assert not torch.equal(flatten(copied(x))[0], expected[0])
    assert all(map(torch.equal, flatten(module(x)), expected))


def test_left_alone() -> None:
    class Mine(fused_rnn.LSTM):
        pass

    model = nn.ModuleList(
        [
            Mine(3, 4),
            parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"),
            prune.l1_unstructured(nn.RNN(3, 4), "weight_hh_l0", amount=0.5),
        ]
    )
    x = torch.randn(2, 1, 3)
    expected = [module(x)[0] for module in model]
    fused_rnn.freeze(model)
    assert not any(isinstance(module, Frozen) for module in model)
    assert isinstance(model[1], fused_rnn.GRU)
    for module, output in zip(model, expected, strict=True):
        assert_close("output", module(x)[0], output, 2e-5)


def test_dropout_follows_the_mode() -> None:
    layer = nn.LSTM(4, 5, num_layers=2, dropout=0.5)
    frozen = fused_rnn.freeze(copy.deepcopy(layer))
    x = torch.randn(3, 2, 4)
    for mode in (True, False, True):
        layer.train(mode), frozen.train(mode)
        torch.manual_seed(1)
        expected = layer(x)[0]
        torch.manual_seed(1)
        assert_close("output", frozen(x)[0], expected.detach(), 2e-5)


def test_frozen_in_inference_mode_and_used_outside() -> None:
    layer = nn.GRU(3, 4)
    x = torch.randn(2, 1, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x)[0].sum(), x)
    with torch.inference_mode():
        fused_rnn.freeze(layer)
        layer(x)
    (actual,) = torch.autograd.grad(layer(x)[0].sum(), x)
    assert_close("gradient", actual, expected, 2e-5)


def test_reading_does_not_pack_again() -> None:
    layer = fused_rnn.freeze(nn.LSTM(3, 4))
    x = torch.randn(2, 1, 3)
    layer(x)
    packed = layer._fused_rnn_packed
    layer.state_dict(), layer.weight_hh_l0, layer.eval(), layer(x)
    assert layer._fused_rnn_packed is packed
    layer.double()
    assert is_packed(layer, x.double())


def test_options_that_change_later() -> None:
    x = torch.randn(5, 2, 3)
    layers = [fused_rnn.GRU(3, 4), nn.RNN(3, 4)]
    twins = fused_rnn.accelerate(nn.ModuleList(copy.deepcopy(layers)))
    frozen = fused_rnn.freeze(nn.ModuleList(layers))
    for module, twin in zip(frozen, twins, strict=True):
        module.batch_first = twin.batch_first = True
        for call in (lambda m: m(x)[0], lambda m: torch.func.vmap(lambda x: m(x)[0])(x[None])):
            assert_close("output", call(module).detach(), call(twin).detach(), 2e-5)


def test_ties_and_shallow_copies() -> None:
    layer = fused_rnn.GRU(3, 4)
    other = fused_rnn.GRU(3, 4)
    other.weight_hh_l0 = layer.weight_hh_l0
    model = fused_rnn.freeze(nn.ModuleList([layer, other]))
    x = torch.randn(2, 1, 3)
    assert torch.equal(copy.copy(layer)(x)[0], layer(x)[0])
    model.load_state_dict(copy.deepcopy(model).state_dict())
    expected = [copy.deepcopy(module).to(torch.float64)(x.double())[0] for module in model]
    for module, output in zip(model, expected, strict=True):
        assert_close("output", module(x)[0].double(), output, 2e-5)
    assert torch.equal(layer.weight_hh_l0, other.weight_hh_l0)
    fused_rnn.thaw(model)
    assert other.weight_hh_l0 is layer.weight_hh_l0


@pytest.mark.parametrize("how", ["tied", "shallow copy"])
def test_weights_changed_through_another_module(how: str) -> None:
    layer, other, source = (fused_rnn.GRU(3, 4) for _ in range(3))
    for name, parameter in layer.named_parameters():
        setattr(other, name, parameter)
    fused_rnn.freeze(nn.ModuleList([layer, other]))
    if how == "shallow copy":
        other = copy.copy(layer)
    x = torch.randn(5, 2, 3)
    layer(x), other(x)
    other.load_state_dict(source.state_dict())
    expected = source(x)[0].detach()
    for module in (layer, other):
        assert_close("output", module(x)[0], expected, 2e-5)
        (transformed,) = torch.func.vmap(module)(x[None])[0]  # Not from the packed weights.
        assert_close("vmap", transformed, expected, 2e-5)
        assert module._fused_rnn_packed is not None
        assert torch.equal(module.weight_hh_l0, source.weight_hh_l0)


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "copy"])
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("differ", [False, True], ids=["equal", "differ"])
def test_thawing_what_was_tied(differ: bool, held: bool, copied: bool) -> None:
    model = nn.ModuleList([fused_rnn.GRU(3, 4), fused_rnn.GRU(3, 4)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    holder = model[0].weight_hh_l0 if held else None
    fused_rnn.freeze(model)
    if copied:
        model = nn.ModuleList([*copy.deepcopy(model), *model])
    model.double()
    if differ:
        model[1].load_state_dict(fused_rnn.GRU(3, 4, dtype=torch.float64).state_dict())
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    expected = [module(x)[0] for module in model]
    fused_rnn.thaw(model)
    weights = [module.weight_hh_l0 for module in model]
    assert (weights[0] is weights[1]) is not differ
    if copied:
        assert weights[2] is weights[3]
        assert weights[0] is not weights[2]
    assert (weights[-2] is holder) == held
    for module, output in zip(model, expected, strict=True):
        assert_close("output", module(x)[0].detach(), output, 1e-10)


def test_freezing_that_fails_changes_nothing() -> None:
    layer = nn.GRU(3, 4)
    names = [name for name, _ in layer.named_parameters()]
    with FakeTensorMode(), pytest.raises(AssertionError, match="Fake"):
        fused_rnn.freeze(layer)
    assert type(layer) is fused_rnn.GRU
    assert [name for name, _ in layer.named_parameters()] == names
    assert layer(torch.randn(2, 1, 3))[0].requires_grad


def test_a_change_that_fails_halfway() -> None:
    layer = fused_rnn.freeze(fused_rnn.GRU(3, 4))
    x = torch.randn(2, 1, 3)
    seen: list[Tensor] = []

    def double(tensor: Tensor) -> Tensor:
        if len(seen) == 2:
            raise KeyError("halfway")
        seen.append(tensor)
        return tensor.mul_(2)

    with torch.no_grad(), pytest.raises(KeyError, match="halfway"):
        layer._apply(double)
    assert not list(layer.parameters())
    after = layer(x)[0]
    assert_close("output", after, fused_rnn.thaw(layer)(x)[0].detach(), 2e-5)


def test_tensors_that_cannot_be_packed() -> None:
    class Tagged(Tensor):
        pass

    x = torch.randn(2, 1, 3)
    weights = fused_rnn.GRU(3, 4).state_dict()
    for change in (
        lambda w: torch._neg_view(w),
        lambda w: w.clone().as_subclass(Tagged),
        lambda w: w.t().contiguous().t() if w.dim() == 2 else w,
    ):
        frozen, plain = fused_rnn.freeze(nn.GRU(3, 4)), nn.GRU(3, 4)
        for module in (frozen, plain):
            module.load_state_dict({k: change(w) for k, w in weights.items()}, assign=True)
        with torch.no_grad():
            actual, expected = frozen(x)[0], plain(x)[0]
        assert_close("output", actual.as_subclass(Tensor), expected.as_subclass(Tensor), 2e-5)
    with torch.inference_mode():
        made_there = fused_rnn.freeze(nn.GRU(3, 4))
    assert is_packed(made_there, x)
    with torch.inference_mode():
        made_there.double()
    assert is_packed(made_there, x.double())


def test_a_cell_without_weights() -> None:
    cell = nn.GRUCell(3, 4)
    for name in list(cell._parameters):
        setattr(cell, name, None)
    fused_rnn.freeze(cell)
    with pytest.raises(TypeError):
        cell(torch.randn(2, 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_beside_first_calls() -> None:
    """A child may be forked at any moment of another thread's first call."""
    layer = fused_rnn.freeze(nn.LSTM(64, 64))
    x = torch.randn(1, 1, 64)

    def call() -> None:
        for _ in range(200):
            layer._pack()
            layer(x)

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(call)
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if layer(x)[0].isfinite().all() else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        calls.result()


def test_state_dict_in_threads_and_hooks() -> None:
    cell = fused_rnn.freeze(nn.GRUCell(3, 4))
    x = torch.randn(2, 3)
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(lambda: [cell.state_dict() for _ in range(300)]) for _ in range(3)]
        assert not any(cell(x).requires_grad for _ in range(3000))
        assert all(len(one) == 4 for read in reads for one in read.result())
    cell.register_load_state_dict_pre_hook(lambda module, *_: module.state_dict() and None)
    cell.load_state_dict(cell.state_dict())


def test_wrapped_and_swapped() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    layer = nn.GRU(3, 4)
    layer.extra = nn.Parameter(torch.zeros(1))
    fused_rnn.freeze(layer)
    parametrize.register_parametrization(layer, "extra", Same())
    x = torch.randn(2, 1, 3)
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    fused_rnn.thaw(layer)  # Of a class that is not ours: left alone.
    assert is_packed(layer, x)

    layer, other = nn.LSTM(3, 4), nn.LSTM(3, 4)
    expected = other(x)[0].detach()
    fused_rnn.freeze(layer)(x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double().float().load_state_dict(other.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_close("output", layer(x)[0], expected, 2e-5)
    assert is_packed(layer, x)


def test_parameters_are_let_go() -> None:
    layer = nn.GRU(3, 4)
    layer.weight_hh_l0.owner = layer
    parameter, module = weakref.ref(layer.weight_hh_l0), weakref.ref(layer)
    fused_rnn.freeze(layer)
    layer(torch.randn(2, 1, 3))
    gc.collect()
    assert parameter() is None
    del layer
    gc.collect()
    assert module() is None


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_hooks_stay(name: str) -> None:
    module = getattr(nn, name)(3, 4)
    calls: list[str] = []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    fused_rnn.freeze(module)
    for x in (torch.randn(2, 3), torch.randn(2, 3, dtype=torch.float16)):
        calls.clear()
        module.to(x.dtype)(x)
        assert calls == ["before", "after"]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_before(name: str) -> None:
    plain = getattr(nn, name)(3, 4)
    frozen = fused_rnn.freeze(copy.deepcopy(plain))
    for arguments in (
        (torch.randn(2, 5),),
        (torch.randn(2, 2, 2, 2),),
        (torch.randn(2, 3, dtype=torch.float64),),
        (torch.randn(2, 3), torch.randn(9, 9)),
        ("text",),
    ):
        with pytest.raises(Exception, match=r".") as theirs:
            plain(*arguments)
        with pytest.raises(type(theirs.value)) as ours:
            frozen(*arguments)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_narrow_types(name: str, dtype: torch.dtype) -> None:
    module = getattr(fused_rnn, name)(5, 17).to(dtype)
    frozen = fused_rnn.freeze(copy.deepcopy(module))
    x = torch.randn(3, 5).to(dtype)
    inputs = [x] if name.endswith("Cell") else [x, pack_sequence([x, x[:2]])]
    for one in inputs:
        with torch.no_grad():
            hx = module(one)
            hx = hx if name.endswith("Cell") else hx[1]
            for arguments in ((one,), (one, hx)):
                actual, expected = flatten(frozen(*arguments)), flatten(module(*arguments))
                assert all(map(torch.equal, actual, expected))
                assert is_packed(frozen, *arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_types_of_large_weights(dtype: torch.dtype) -> None:
    """Those are converted once: no reason to leave the call to torch."""
    frozen = fused_rnn.freeze(nn.LSTM(300, 300).to(dtype))
    x = torch.randn(1, 1, 300).to(dtype)
    with torch.no_grad():
        assert is_packed(frozen, x)
        assert fused_rnn.explain(frozen, x).way == "fused"
    if not _C.multiplies_bfloat16() or dtype == torch.float16:
        # But for gradients of the input they are not packed.
        assert fused_rnn.explain(frozen, x.clone().requires_grad_()).way == "torch"
    with torch.no_grad():
        reference = copy.deepcopy(frozen).float()(x.float())[0]
        assert_close("float32", frozen(x)[0].float(), reference, 1e-2)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_between_layers(packed: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 4, num_layers=2, dropout=0.5)
    frozen = fused_rnn.freeze(copy.deepcopy(layer))
    x: Any = torch.randn(5, 2, 3)
    if packed:
        x = pack_padded_sequence(x, [5, 3])
    results = []
    for module in (layer, frozen):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(flatten(module(x)))
    for one, other in zip(*results, strict=True):
        assert_close("result", one, other, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    layer = fused_rnn.LSTM(5, 17).to(dtype)
    frozen = fused_rnn.freeze(copy.deepcopy(layer))
    x = torch.randn(3, 2, 5).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        wide, others = frozen.float()(x.float()), layer.float()(x.float())
        assert wide[0].dtype == others[0].dtype
        assert torch.equal(wide[0], others[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_transforms_and_tracers(name: str) -> None:
    layer = getattr(fused_rnn, name)(3, 4)
    frozen = fused_rnn.freeze(copy.deepcopy(layer))
    x = torch.randn(5, 3)
    expected = flatten(layer(x))[0].detach()

    def loss(module: Any, x: Tensor) -> Tensor:
        return flatten(module(x))[0].square().sum()

    actual = torch.func.grad(lambda x: loss(frozen, x))(x)
    assert_close("torch.func.grad", actual, torch.func.grad(lambda x: loss(layer, x))(x), 2e-5)
    many = torch.func.vmap(lambda x: flatten(frozen(x))[0])(x.expand(2, 5, 3))
    assert_close("vmap", many[1].detach(), expected, 2e-5)
    compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    assert_close("torch.compile", flatten(compiled(x))[0], expected, 2e-5)
    graph = torch.fx.symbolic_trace(nn.Sequential(frozen))
    assert_close("symbolic_trace", flatten(graph(x))[0], expected, 2e-5)
    traced = torch.jit.trace(frozen, x)
    assert_close("jit.trace", flatten(traced(x))[0], expected, 2e-5)
    for strict in (False, True):
        program = torch.export.export(frozen, (x,), strict=strict)
        assert_close("export", flatten(program.module()(x))[0].detach(), expected, 2e-5)
    assert fused_rnn.explain(frozen, x) == fused_rnn.explain(layer, x)


def test_jit_script() -> None:
    model = tracing.Model("LSTM")
    expected = model(tracing.X).detach()
    scripted = torch.jit.script(fused_rnn.freeze(model))
    assert_close("jit.script", scripted(tracing.X).detach(), expected, 2e-5)


def test_functional_call_cannot_replace_weights() -> None:
    layer = nn.GRU(3, 4)
    weights = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    fused_rnn.freeze(layer)
    with pytest.raises((AttributeError, KeyError, TypeError)):
        torch.func.functional_call(layer, weights, torch.randn(2, 3))
