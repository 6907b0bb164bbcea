"""float16 and bfloat16, as the type of a module and under autocast: torch's types, and errors no
larger than torch's."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.parametrize import register_parametrization

import fused_rnn
from cases import (
    KINDS,
    SMALL_CASES,
    Case,
    assert_close,
    flatten,
    module_call,
    names_of,
    run_with_grads,
    threads,
)
from fused_rnn import _narrow

NARROW = (torch.bfloat16, torch.float16)
LAYERS = ("LSTM", "GRU", "RNN")
MODULES = (*LAYERS, "LSTMCell", "GRUCell", "RNNCell")

LAYER_CASES = tuple(
    replace(Case(kind, 7, 3, 5, 17), **more)
    for kind in KINDS
    for more in (
        {},
        {"hx": False, "bias": False},
        {"L": 2, "bidirectional": True, "batch_first": True},
        {"lengths": (7, 4, 1)},
        {"lengths": (2, 7, 5), "L": 2},
        {"lengths": (2, 7, 5), "bidirectional": True},
        {"T": 1},
        {"B": 1},
        {"B": 0},
        *([{"P": 5}, {"P": 5, "L": 2, "bidirectional": True}] if kind == "LSTM" else []),
    )
)


@pytest.fixture
def converting() -> Iterator[None]:
    """An instruction set whose kernels convert every narrow type to float32."""
    if fused_rnn._C.multiplies_bfloat16():
        fused_rnn._C.set_isa("avx2")
    yield
    fused_rnn._C.set_isa(None)


def check_errors(names: Any, ours: Any, theirs: Any, exact: Any) -> None:
    """Each of our results has torch's type and is at most as far from the exact one as torch's, or
    as rounding it takes it."""
    for name, one, other, truth in zip(names, ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype, name
        error, torch_error = (
            (result.double() - truth).abs().max().item() for result in (one, other)
        )
        rounding = torch.finfo(one.dtype).eps * truth.abs().max().item()
        assert error <= 1.05 * torch_error + rounding, (name, error, torch_error, rounding)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layers(case: Case, dtype: torch.dtype) -> None:
    check_layer(case, dtype)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layers_by_conversion(case: Case, dtype: torch.dtype, converting: None) -> None:
    check_layer(case, dtype)


def check_layer(case: Case, dtype: torch.dtype) -> None:
    for _ in range(50):
        ours = case.module(fused_rnn, dtype)
        theirs = case.module(torch.nn, dtype)
        exact = case.module(torch.nn, torch.float64)
        for other in (theirs, exact):
            other.load_state_dict(ours.state_dict())
        x, states = case.tensors(dtype, torch.initial_seed())
        way = fused_rnn.explain(ours, case.pack(x), case.hx_of(states))
        assert way.way == "fused", way
        # The random weights of the loss must be the same numbers in all three.
        wide = run_of(case, exact, x.double(), [s.double() for s in states], dtype)
        actual = run_of(case, ours, x, states, dtype)
        with threads(1):
            expected = run_of(case, theirs, x, states, dtype)
        count = len(actual) - len(list(ours.parameters())) - len(states) - 1
        names = names_of(count, [name for name, _ in ours.named_parameters()], len(states))
        check_errors(names[:count], actual[:count], expected[:count], wide[:count])
        # Where an h close to zero comes out on the other side of it, a relu has another derivative,
        # and the gradients have nothing to do with each other: other numbers are drawn then.
        if case.kind != "RNN_RELU" or same_zeros(actual[0], expected[0], wide[0]):
            check_errors(names, actual, expected, wide)
            return
        torch.manual_seed(torch.initial_seed() + 1)
    pytest.fail("no draw in which all agree about the zeros of a relu")


def same_zeros(*results: Tensor) -> bool:
    return all(torch.equal(result == 0, results[0] == 0) for result in results)


def run_of(case: Case, module: Any, x: Tensor, states: Any, dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients, for a loss whose weights are drawn in `dtype`."""
    leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in states)]
    results = flatten(module_call(case, module)(leaves[0], leaves[1:]))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator).to(dtype).to(r.dtype) for r in results]
    grads = torch.autograd.grad(results, [*leaves, *module.parameters()], weights)
    return [*(r.detach() for r in results), *grads]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", MODULES[3:])
@pytest.mark.parametrize("batched", [True, False])
def test_cells(name: str, batched: bool, dtype: torch.dtype) -> None:
    ours = getattr(fused_rnn, name)(5, 17, dtype=dtype)
    theirs = getattr(torch.nn, name)(5, 17, dtype=dtype)
    exact = getattr(torch.nn, name)(5, 17, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    exact.load_state_dict(ours.state_dict())
    x, h = (torch.randn(*[3] * batched, width, dtype=dtype) for width in (5, 17))
    hx = (h, h.neg()) if name == "LSTMCell" else h
    wide = (h.double(), h.neg().double()) if name == "LSTMCell" else h.double()
    assert fused_rnn.explain(ours, x, hx).way == "fused"
    results = [flatten(call) for call in (ours(x, hx), theirs(x, hx), exact(x.double(), wide))]
    check_errors(("h", "c")[: len(results[0])], *results)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_operators(case: Case, dtype: torch.dtype) -> None:
    layer = case.module(torch.nn, dtype)
    x, states = case.tensors(dtype)
    packed = case.pack(x)
    rows, sizes = (packed, None) if case.lengths is None else (packed.data, packed.batch_sizes)
    arguments = (rows, list(states), list(layer.parameters()), sizes)
    settings = (case.cell, case.L, case.bidirectional)
    ops = torch.ops.fused_rnn
    # aot_dispatch compares gradients with tolerances for wide types.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.sequence.default, arguments + settings, test_utils=utilities)
    torch.library.opcheck(ops.sequence_train.default, arguments + settings, test_utils=utilities)
    *results, reserve = ops.sequence_train(*arguments, *settings)
    assert reserve.dtype == _narrow.computed_in(dtype)
    wanted = [True] * (1 + len(states) + len(arguments[2]))
    torch.library.opcheck(
        ops.sequence_backward.default,
        (results, *arguments, reserve, *settings, wanted),
        test_utils=utilities,
    )


def test_second_derivatives() -> None:
    layer = fused_rnn.GRU(3, 4, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)

    def second(layer: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    narrow = second(layer, x)
    assert narrow.dtype == torch.bfloat16
    # The products and sums of torch's own layers, in bfloat16.
    assert_close("second", narrow.double(), second(layer.double(), x.double()), 0.05)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_subset_of_requires_grad(kind: str, dtype: torch.dtype) -> None:
    """Frozen tensors change nothing for the others."""
    case = Case(kind, 4, 3, 5, 7, L=2, bidirectional=True)
    layer = case.module(fused_rnn, dtype)
    x, states = case.tensors(dtype)
    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in states)]
    tensors = [*leaves, *layer.parameters()]

    def gradients() -> list[Tensor | None]:
        for tensor in tensors:
            tensor.grad = None
        sum(r.float().sum() for r in flatten(module_call(case, layer)(x, states))).backward()
        return [tensor.grad for tensor in tensors]

    complete = gradients()
    for frozen in ([0], range(len(leaves)), range(len(leaves), len(tensors)), [len(tensors) - 1]):
        for index, tensor in enumerate(tensors):
            tensor.requires_grad_(index not in frozen)
        for index, (one, other) in enumerate(zip(gradients(), complete, strict=True)):
            assert (one is None) == (index in frozen)
            assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("given", ["nothing", "float32", "narrow"])
@pytest.mark.parametrize("input_is_narrow", [True, False])
@pytest.mark.parametrize(
    ("name", "packed"),
    [
        *((name, False) for name in (*MODULES, "projected")),
        *((n, True) for n in (*LAYERS, "projected")),
    ],
)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_autocast(
    dtype: torch.dtype, name: str, packed: bool, input_is_narrow: bool, given: str
) -> None:
    settings = {"proj_size": 4} if name == "projected" else {}
    name = "LSTM" if name == "projected" else name
    ours = getattr(fused_rnn, name)(5, 9, **settings)
    theirs = getattr(torch.nn, name)(5, 9, **settings)
    theirs.load_state_dict(ours.state_dict())
    exact = getattr(torch.nn, name)(5, 9, dtype=torch.float64, **settings)
    exact.load_state_dict(ours.state_dict())

    x = torch.randn(*[6] * (name in LAYERS), 3, 5).to(dtype)
    kind = dtype if given == "narrow" else torch.float32
    widths = [settings.get("proj_size", 9), 9][: 1 + name.startswith("LSTM")]
    states = [torch.randn(*[1] * (name in LAYERS), 3, w).to(dtype) for w in widths]

    def arguments(x_type: torch.dtype, state_type: torch.dtype) -> Any:
        rows: Any = x.to(x_type)
        if packed:
            rows = torch.nn.utils.rnn.pack_padded_sequence(rows, [6, 3, 2])
        if given == "nothing":
            return rows, None
        hx = [state.to(state_type) for state in states]
        return rows, tuple(hx) if len(hx) == 2 else hx[0]

    call = arguments(dtype if input_is_narrow else torch.float32, kind)
    truth = flatten(exact(*arguments(torch.float64, torch.float64)))
    with torch.autocast("cpu", dtype):
        assert fused_rnn.explain(ours, *call).way == "fused"
        actual = flatten(ours(*call))
        onednn = name == "LSTM" and not (packed or settings)
        has_kernel = dtype == torch.bfloat16 and _narrow._ONEDNN_HAS_BFLOAT16
        if onednn and not has_kernel and not input_is_narrow:
            # What torch then says: "could not create a primitive descriptor".
            with pytest.raises(RuntimeError):
                theirs(*call)
            # Type promotion would give this, as it does for packed input.
            kind = dtype if given == "narrow" else torch.float32
            for one, wide in zip(actual, truth, strict=True):
                tolerance = max(2e-5, torch.finfo(kind).eps)
                assert_close("result", one, wide.to(kind), tolerance)
        else:
            names = ("output", "hn", "cn")[: len(truth)]
            check_errors(names, actual, flatten(theirs(*call)), truth)
    grads = torch.autograd.grad(
        sum(result.float().sum() for result in actual), list(ours.parameters())
    )
    for grad, wide in zip(
        grads,
        torch.autograd.grad(sum(result.sum() for result in truth), list(exact.parameters())),
        strict=True,
    ):
        assert_close("gradient", grad.double(), wide, 2e-5)


@pytest.mark.parametrize("onednn_has_it", [True, False])
def test_types_under_autocast_to_bfloat16(
    monkeypatch: pytest.MonkeyPatch, onednn_has_it: bool
) -> None:
    """Without oneDNN's LSTM in bfloat16, torch promotes types as it does for float16."""
    monkeypatch.setattr(_narrow, "_ONEDNN_HAS_BFLOAT16", onednn_has_it)
    x, state = torch.ones(3, 2, 5), torch.ones(1, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        types = _narrow.result_types(x, [state, state], "lstm", onednn=True)
    assert types == [torch.bfloat16 if onednn_has_it else torch.float32] * 2


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_of_what_it_does_not_cast(name: str) -> None:
    ours = getattr(fused_rnn, name)(5, 9, dtype=torch.float64)
    theirs = getattr(torch.nn, name)(5, 9, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in fused_rnn.explain(ours, x)
        for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
            assert torch.equal(one, other)


def test_mistakes_under_autocast() -> None:
    for package in (torch.nn, fused_rnn):
        layer = package.GRU(5, 9)
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.raises(RuntimeError, match=r"input\.size"):
                layer(torch.randn(6, 3, 4))
            with pytest.raises(RuntimeError, match="Expected hidden size"):
                layer(torch.randn(6, 3, 5), torch.randn(1, 2, 9))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_torch_takes_what_it_is_faster_at(name: str, dtype: torch.dtype, converting: None) -> None:
    """Large weights for one row: converting them would take longer than the step."""
    ours = getattr(fused_rnn, name)(700, 700, dtype=dtype)
    theirs = getattr(torch.nn, name)(700, 700, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*[1] * (name in LAYERS), 1, 700, dtype=dtype)
    assert "faster" in fused_rnn.explain(ours, x)
    with torch.no_grad():
        for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
            assert torch.equal(one, other)


def test_products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products go to torch where it has instructions for them and the kernels convert."""
    weights = 4 * 128 * 256
    monkeypatch.setattr(_narrow, "_HAS_TILES", False)
    for multiplies, converts in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(_narrow, "_MULTIPLIES_BFLOAT16", multiplies)
        for onednn, limit in ((True, 2 << 20), (False, 20 << 20)):
            for batch in (limit // weights, limit // weights + 1):
                sizes = (weights, 3200, batch, converts, onednn)
                ahead = _narrow.torch_is_ahead(torch.bfloat16, torch.float32, *sizes)
                assert ahead == (multiplies and batch * weights > limit)
                assert not _narrow.torch_is_ahead(torch.float16, torch.float32, *sizes)
                assert not _narrow.torch_is_ahead(torch.bfloat16, torch.bfloat16, *sizes)
        for dtype in NARROW:
            fewest = 16 if multiplies and dtype == torch.bfloat16 else 4
            for rows in (1, 3, 4, 15, 16):
                for few, limit in ((rows < fewest, (1 << 18) + 1), (False, 1 << 18)):
                    sizes = (limit, rows, 1, converts, False)
                    ahead = _narrow.torch_is_ahead(dtype, torch.float32, *sizes)
                    assert ahead == (few and converts)


@pytest.mark.parametrize("count", [1, 2])
def test_products_of_a_matrix_unit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are larger with more threads, and smaller for LSTMs that are not trained; of those
    that are, few rows stay here."""
    monkeypatch.setattr(_narrow, "_MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(_narrow, "_HAS_TILES", True)
    weights = 4 * 128 * 256
    for onednn, trained in itertools.product((True, False), repeat=2):
        limit = count * (20 << 20 if not onednn else 2 << 20 if trained else 1 << 20)
        with threads(count), torch.set_grad_enabled(trained):
            for batch in (limit // weights, limit // weights + 1):
                sizes = (weights, 3200, batch, True, onednn)
                ahead = _narrow.torch_is_ahead(torch.bfloat16, torch.float32, *sizes)
                assert ahead == (batch * weights > limit)
            for batch in (1, 4, 5):
                sizes = (limit, 3200, batch, True, onednn)
                ahead = _narrow.torch_is_ahead(torch.bfloat16, torch.float32, *sizes)
                assert ahead == (batch > 1 and not (onednn and trained and batch <= 4))


@pytest.mark.skipif(
    not fused_rnn._C.multiplies_bfloat16(), reason="no instructions for products of bfloat16"
)
@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell"])
def test_autocast_casts_where_it_pays(name: str) -> None:
    """The larger size is computed in bfloat16, as torch does, unless its results are float32."""
    for hidden, kind in ((9, torch.float32), (130, torch.bfloat16)):
        ours = getattr(fused_rnn, name)(70, hidden)
        theirs = getattr(torch.nn, name)(70, hidden)
        theirs.load_state_dict(ours.state_dict())
        exact = getattr(torch.nn, name)(70, hidden, dtype=torch.float64)
        exact.load_state_dict(ours.state_dict())
        x = torch.randn(*[7] * (name in LAYERS), 33, 70)
        with torch.autocast("cpu", torch.bfloat16):
            actual, expected = flatten(ours(x)), flatten(theirs(x))
        truth = flatten(exact(x.double()))
        check_errors(("output", "hn", "cn")[: len(truth)], actual, expected, truth)
        error = (actual[0].double() - truth[0]).abs().max().item()
        rounding = (truth[0].to(actual[0].dtype).double() - truth[0]).abs().max().item()
        # Computed in float32, a result is as good as rounded once; in bfloat16 it is not.
        as_good = error <= rounding + 2e-5
        assert as_good == (torch.float32 in (kind, actual[0].dtype))


def test_instruction_sets_do_not_mix() -> None:
    """What a forward pass kept on one instruction set is refused on one that reads it otherwise."""
    if not fused_rnn._C.multiplies_bfloat16():
        pytest.skip("needs instructions for products of bfloat16")
    layer = fused_rnn.LSTM(1, 1, dtype=torch.bfloat16)
    output = layer(torch.ones(1, 1, 1, dtype=torch.bfloat16))[0]
    fused_rnn._C.set_isa("avx2")
    try:
        with pytest.raises(RuntimeError, match="Expected reserve to have dtype"):
            output.sum().backward()
    finally:
        fused_rnn._C.set_isa(None)


@pytest.mark.parametrize("size", [9, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_parametrizations_are_drawn_as_often_as_by_torch(
    size: int, dtype: torch.dtype
) -> None:
    """Under autocast and in bfloat16; the larger size goes to torch where it is converted."""
    results = []
    for package in (torch.nn, fused_rnn):
        torch.manual_seed(1)
        layer = package.GRU(5, size, dtype=dtype)
        register_parametrization(layer, "weight_hh_l0", torch.nn.Dropout(0.5))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            results.append(layer(torch.ones(1, 1, 5, dtype=dtype))[0])
            results.append(torch.rand(1))
            faster = "faster" in str(fused_rnn.explain(layer, torch.ones(1, 1, 5, dtype=dtype)))
        converted = dtype == torch.float32 or _narrow.computed_in(dtype) == torch.float32
        assert package is torch.nn or faster == (size == 700 and converted)
    assert_close("result", results[2], results[0], 2 * torch.finfo(torch.bfloat16).eps)
    assert torch.equal(results[3], results[1])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_results_are_rounded_once(dtype: torch.dtype, converting: None) -> None:
    """Converted, states stay in float32 from step to step: a small input is not lost beside a large
    state."""
    rnn = fused_rnn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=dtype)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(1)
    # In the narrow type 2 / eps + 1 is 2 / eps, and more steps of one would stop there.
    steps = int(2 / torch.finfo(dtype).eps) + 1
    x = torch.ones(steps, 1, 1, dtype=dtype)
    assert rnn(x)[1].item() == torch.tensor(float(steps)).to(dtype).item()
    assert rnn(torch.cat([x, x]))[1].item() == torch.tensor(2.0 * steps).to(dtype).item()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_cell_states_are_rounded_once(dtype: torch.dtype) -> None:
    """c stays in float32 from step to step: i g = 1 is not lost beside a large c."""
    lstm = fused_rnn.LSTM(1, 1, dtype=dtype)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.fill_(20)
    steps = 1 + 2 / torch.finfo(dtype).eps
    x = torch.ones(int(steps), 1, 1, dtype=dtype)
    assert lstm(x)[1][1].item() == torch.tensor(steps).to(dtype).item()
    assert lstm(torch.cat([x, x]))[1][1].item() == torch.tensor(2 * steps).to(dtype).item()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_states_of_a_gru_are_rounded_once(dtype: torch.dtype, train: bool) -> None:
    """h = z h with z close to one does not stay where rounding would hold it."""
    gru = fused_rnn.GRU(1, 1, dtype=dtype)
    with torch.no_grad():
        for weight in gru.parameters():
            weight.zero_()
        gru.bias_ih_l0[1] = 8  # of z
    x = torch.zeros(1000, 1, 1, dtype=dtype)
    with torch.set_grad_enabled(train):
        hn = gru(x, torch.ones(1, 1, 1, dtype=dtype))[1]
    expected = torch.sigmoid(torch.tensor(8.0)) ** 1000
    assert hn.item() == expected.to(dtype).item()


def test_functional() -> None:
    case = Case("LSTM", 4, 2, 3, 5)
    layer = case.module(fused_rnn, torch.bfloat16)
    x, states = case.tensors(torch.bfloat16)
    params = list(layer.parameters())
    by_function = run_with_grads(
        lambda x, s: fused_rnn.functional.lstm(x, params, tuple(s)), x, states, params
    )
    by_module = run_with_grads(module_call(case, layer), x, states, params)
    assert all(map(torch.equal, by_function, by_module))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("size", [16, 512])
def test_weights_of_a_wrong_size(size: int, autocast: bool) -> None:
    """torch's LSTM would read past the end of them, at the sizes that it takes as well."""
    dtype = torch.float32 if autocast else torch.bfloat16
    layer = fused_rnn.LSTM(size, size, dtype=dtype)
    layer.weight_hh_l0 = torch.nn.Parameter(torch.randn(3, 2, dtype=dtype))
    x = torch.randn(1, 1, size, dtype=dtype)
    packed = torch.nn.utils.rnn.pack_sequence([x[0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for input in (x, packed):
            with pytest.raises(RuntimeError, match="Expected weight_hh_l0 size"):
                layer(input)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_transforms_at_every_size(name: str) -> None:
    """torch cannot take what it is faster at under a transform."""
    module = getattr(fused_rnn, name)(512, 512, dtype=torch.bfloat16)
    x = torch.randn(*[1] * (name in LAYERS), 1, 512, dtype=torch.bfloat16)
    tangent = torch.func.jvp(lambda x: flatten(module(x))[0], (x,), (x,))[1]
    wide = getattr(torch.nn, name)(512, 512, dtype=torch.float64)
    wide.load_state_dict(module.state_dict())
    leaf = x.double().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: flatten(wide(x))[0], leaf)
    assert_close(
        "tangent",
        tangent.double().flatten(),
        jacobian.flatten(-2).squeeze() @ leaf.detach().flatten(),
        0.05,
    )


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_mistakes_have_torchs_errors(name: str, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    for input in (torch.randn(()), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 7)):
        found = []
        for package in (fused_rnn, torch.nn):
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                pytest.raises((RuntimeError, ValueError)) as error,
            ):
                getattr(package, name)(5, 9, dtype=dtype)(input.to(dtype))
            found.append((type(error.value), str(error.value)))
        assert found[0] == found[1]


def test_unknown_nonlinearity() -> None:
    for package in (fused_rnn, torch.nn):
        cell = package.RNNCell(4, 7)
        cell.nonlinearity = "foo"
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(RuntimeError, match="Unknown nonlinearity"),
        ):
            cell(torch.randn(3, 4))


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16], ids=str)
def test_computed_weights_are_read_as_often_as_by_torch(weight_type: torch.dtype) -> None:
    class Counting(torch.nn.Module):
        reads = 0

        def forward(self, weight: Tensor) -> Tensor:
            Counting.reads += 1
            return weight.to(weight_type)

    counts = []
    for package in (fused_rnn, torch.nn):
        layer = package.GRU(5, 9)
        register_parametrization(layer, "weight_hh_l0", Counting(), unsafe=True)
        for states in (None, torch.zeros(1, 3, 9, dtype=torch.float64)):
            Counting.reads = 0
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                try:
                    layer(torch.randn(6, 3, 5), states)
                except RuntimeError:
                    assert states is not None
            counts.append(Counting.reads)
    assert counts[:2] == counts[2:]
