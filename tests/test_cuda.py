"""Modules on CUDA: torch's results through torch's own implementation, and the way there and back.

Nothing is fused there. What is to be shown is that nothing of this package stands in the way.
"""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from cases import DTYPES, KINDS, TOLERANCE, Case, assert_close, flatten, names_of
from test_cells import draw, hx_of
from test_cells import make as make_cell

DEVICE = "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    # torch.nn's layers say so as well, of copies, pickles and bfloat16.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous"),
]

CASES = [
    replace(Case(kind, 5, 3, 4, 9), **more)
    for kind in KINDS
    for more in (
        {},
        {"hx": False, "bias": False},
        {"L": 2, "bidirectional": True, "batch_first": True},
        {"B": 0},
        {"lengths": (5, 3, 2)},
        {"lengths": (2, 5, 3), "L": 2, "bidirectional": True},
        *([{"P": 3, "L": 2}] * (kind == "LSTM")),
    )
]


def there(value: Any) -> Any:
    """A tensor, a packed sequence or a tuple of them on the device."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return tuple(map(there, value))
    return value if value is None else value.to(DEVICE)


def results_and_gradients(
    module: Any, case: Case, x: Tensor, states: tuple[Tensor, ...]
) -> list[Tensor]:
    """Of a call with copies of x and states: results, then gradients to those and the parameters,
    of one random linear function of the results. All on the CPU."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *states)]
    results = flatten(module(case.pack(leaves[0]), case.hx_of(leaves[1:])))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator, dtype=r.dtype).to(r) for r in results]
    total = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, [*leaves, *module.parameters()])
    return [r.detach().cpu() for r in (*results, *grads)]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(str(index), one, other, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case, dtype: torch.dtype) -> None:
    """Moved modules against torch.nn's moved ones, and float64 against the CPU's results."""
    ours, theirs = case.module(fused_rnn, dtype), case.module(nn, dtype)
    theirs.load_state_dict(ours.state_dict())
    x, states = case.tensors(dtype)
    on_cpu = results_and_gradients(ours, case, x, states)
    assert ours.to(DEVICE) is ours
    theirs.to(DEVICE)
    x, states = there(x), there(states)
    explanation = fused_rnn.explain(ours, case.pack(x), case.hx_of(states))
    assert explanation.way == "torch"
    assert f"the input is on {DEVICE}" in explanation
    found = results_and_gradients(ours, case, x, states)
    expected = results_and_gradients(theirs, case, x, states)
    count = len(found) - len(list(ours.parameters())) - len(states) - 1
    names = names_of(count, [n for n, _ in ours.named_parameters()], len(states))
    for name, one, other in zip(names, found, expected, strict=True):
        assert_close(name, one, other, TOLERANCE[dtype])
    if dtype == torch.float64:
        assert_all_close(found, on_cpu, 1e-10)
    for one in flatten(ours(case.pack(x), case.hx_of(states))):
        assert one.device.type == DEVICE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cell(kind: str, batch: int, dtype: torch.dtype) -> None:
    ours, theirs = (make_cell(kind, p, 4, 9, dtype=dtype) for p in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    x, states = draw(kind, batch, 4, 9, dtype)
    found = []
    for cell in (ours, theirs):
        cell.to(DEVICE)
        leaves = [there(t).requires_grad_() for t in (x, *states)]
        results = flatten(cell(leaves[0], hx_of(kind, leaves[1:])))
        total = sum(r.square().sum() for r in results)
        assert isinstance(total, Tensor)
        grads = torch.autograd.grad(total, [*leaves, *cell.parameters()])
        found.append([r.detach() for r in (*results, *grads)])
        found[-1] += [r.detach() for r in flatten(cell(leaves[0]))]
    assert all(r.device.type == DEVICE for r in found[0])
    assert_all_close(found[0], found[1], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_autocast(kind: str, dtype: torch.dtype) -> None:
    """Exactly torch's: it is torch's code that runs."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        pytest.skip("this device has no bfloat16")
    case = Case(kind, 5, 3, 4, 9)
    ours, theirs = (case.module(p, torch.float32).to(DEVICE) for p in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    x, states = there(case.tensors(torch.float32))
    found = []
    for layer in (ours, theirs):
        with torch.no_grad(), torch.autocast(DEVICE, dtype=dtype):
            results = flatten(layer(x, case.hx_of(states)))
        half = copy.deepcopy(layer).to(dtype)
        with torch.no_grad():
            results += flatten(half(x.to(dtype), case.hx_of([s.to(dtype) for s in states])))
        found.append(results)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back(case: Case) -> None:
    """The same bits on the CPU after a stay on the device, fused again."""
    layer = case.module(fused_rnn, torch.float32)
    x, states = case.tensors(torch.float32)
    before = results_and_gradients(layer, case, x, states)
    for _ in range(2):
        layer.to(DEVICE)
        assert all(p.device.type == DEVICE for p in layer._flat_weights)
        results_and_gradients(layer, case, there(x), there(states))
        layer.cpu()
        assert fused_rnn.explain(layer, case.pack(x), case.hx_of(states)).way == "fused"
        after = results_and_gradients(layer, case, x, states)
        assert all(map(torch.equal, after, before))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 6, num_layers=2, bidirectional=True)
        self.decoder = nn.GRU(12, 6)
        self.cell = nn.RNNCell(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.encoder(x)
        x, _ = self.decoder(x)
        result: Tensor = self.cell(x[-1])
        return result


@pytest.mark.parametrize("moved_first", [False, True])
def test_accelerate_and_restore(moved_first: bool) -> None:
    """Before or after the move, the model trains on the device as it did, and on the CPU fused."""
    plain, model = Model().double(), Model().double()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    if moved_first:
        fused_rnn.accelerate(model.to(DEVICE))
    else:
        fused_rnn.accelerate(model).to(DEVICE)
    plain.to(DEVICE)
    assert isinstance(model.encoder, fused_rnn.LSTM)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
    for _ in range(3):
        totals = []
        for each, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            total = each(there(x)).square().sum()
            total.backward()
            optimizer.step()
            totals.append(total.detach())
        assert_close("loss", totals[1], totals[0], 1e-10)
    on_device = plain(there(x)).detach().cpu()
    assert_close("back on the CPU", model.cpu()(x).detach(), on_device, 1e-10)
    fused_rnn.restore(model).to(DEVICE)
    assert type(model.encoder) is nn.LSTM
    assert_close("restored", model(there(x)).detach().cpu(), on_device, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_made_on_the_device(kind: str) -> None:
    """By the constructor, by a default device, from the meta device, by a copy, by a pickle."""
    case = Case(kind, 5, 3, 4, 9)
    x, states = there(case.tensors(torch.float32))
    first = case.module(fused_rnn, torch.float32, device=DEVICE)
    with torch.device(DEVICE):
        second = case.module(fused_rnn, torch.float32)
    third = case.module(fused_rnn, torch.float32, device="meta").to_empty(device=DEVICE)
    for layer in (second, third):
        layer.load_state_dict(first.state_dict())
    expected = flatten(first(x, case.hx_of(states)))
    for layer in (second, third, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert all(p.device.type == DEVICE for p in layer.parameters())
        for one, other in zip(flatten(layer(x, case.hx_of(states))), expected, strict=True):
            assert_close("result", one.detach(), other.detach(), 2e-5)


def error_of(module: Any, *arguments: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as error:  # noqa: PT011
        module(*arguments)
    return type(error.value), str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_on_two_devices(kind: str) -> None:
    """Input here and weights there, the other way round, and a state elsewhere: torch's errors."""
    case = Case(kind, 5, 3, 4, 9)
    x, states = case.tensors(torch.float32)
    pairs = [
        [case.module(p, torch.float32) for p in (fused_rnn, nn)],
        [case.module(p, torch.float32).to(DEVICE) for p in (fused_rnn, nn)],
    ]
    calls = [
        [(there(x), None), (x, case.hx_of(there(states)))],
        [(x, None), (there(x), case.hx_of(states))],
    ]
    for (ours, theirs), arguments in zip(pairs, calls, strict=True):
        for each in arguments:
            assert error_of(ours, *each) == error_of(theirs, *each)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_eval_mode(kind: str) -> None:
    """cuDNN keeps what a backward pass needs in training mode only; the refusal is torch's, and on
    the CPU there is none."""
    case = Case(kind, 5, 3, 4, 9)
    x, states = case.tensors(torch.float32)
    layer, plain = (case.module(p, torch.float32).eval() for p in (fused_rnn, nn))
    flatten(layer(x, case.hx_of(states)))[0].sum().backward()
    x, states = there(x), there(states)
    found = []
    for module in (layer.to(DEVICE), plain.to(DEVICE)):
        output = flatten(module(x, case.hx_of(states)))[0]
        try:
            output.sum().backward()
        except RuntimeError as error:
            found.append(str(error))
        else:
            found.append("")
    assert found[0] == found[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel() -> None:
    plain, model = Model().to(DEVICE), Model().to(DEVICE)
    model.load_state_dict(plain.state_dict())
    fused_rnn.accelerate(model)

    class Rows(nn.Module):
        """The batch first, where DataParallel divides."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x.transpose(0, 1))
            return result

    x = torch.randn(8, 5, 4, device=DEVICE)
    outputs = []
    for each in (plain, model):
        output = nn.DataParallel(Rows(each))(x)
        output.square().sum().backward()
        outputs.append(output.detach())
    assert_close("output", outputs[1], outputs[0], 2e-5)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close("grad", one.grad, other.grad, 2e-5)
