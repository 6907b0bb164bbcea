"""Every reason not to fuse a call is reachable, is explained, and leaves torch's result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.overrides import TorchFunctionMode

import fused_rnn
from cases import assert_close, flatten
from fused_rnn.dispatch import Explanation

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


class Watching(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Marked(Tensor):
    """A subclass without behaviour of its own."""


@contextmanager
def forward_mode() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


@dataclass(frozen=True)
class Reason:
    text: str
    way: str = "torch"
    dtype: torch.dtype = torch.float32
    change: Callable[[Tensor], Tensor] = lambda x: x
    surroundings: Callable[[], Any] = nullcontext


REASONS = {
    "autocast": Reason(
        "autocast is on",
        dtype=torch.float64,
        surroundings=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ),
    "function mode": Reason("__torch_function__ mode", surroundings=Watching),
    "forward mode": Reason("forward-mode", "reference", surroundings=forward_mode),
    "subclass": Reason("a Marked, not a plain tensor", change=lambda x: x.as_subclass(Marked)),
    "empty batch": Reason("the input is empty", change=lambda x: x[..., :0, :]),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_reason_is_given_and_torch_answers(name: str, reason: str) -> None:
    case = REASONS[reason]
    ours = getattr(fused_rnn, name)(4, 7, dtype=case.dtype)
    theirs = getattr(torch.nn, name)(4, 7, dtype=case.dtype)
    theirs.load_state_dict(ours.state_dict())
    shape = (3, 4) if name in CELLS else (5, 3, 4)
    x = case.change(torch.randn(shape, dtype=case.dtype))
    with case.surroundings():
        explanation = fused_rnn.explain(ours, x)
        actual, expected = flatten(ours(x)), flatten(theirs(x))
    assert explanation.way == case.way
    assert case.text in explanation.reason
    assert case.text in explanation
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is type(other)
        if case.way == "torch":
            assert torch.equal(one, other)
        else:
            assert_close("result", one, other, 2e-5)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_meta_tensors(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 7, device="meta")
    x = torch.randn((3, 4) if name in CELLS else (5, 3, 4), device="meta")
    assert "on meta" in fused_rnn.explain(module, x)
    for result in flatten(module(x)):
        assert result.device.type == "meta"
        assert result.shape[-1] == 7


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_weights_elsewhere(name: str) -> None:
    """A meta tensor among CPU tensors must not lead to an answer of uninitialised memory, with
    which torch's cells do answer."""
    module = getattr(fused_rnn, name)(4, 7)
    attribute = "weight_hh" if name in CELLS else "weight_hh_l0"
    setattr(module, attribute, torch.nn.Parameter(getattr(module, attribute).to("meta")))
    x = torch.randn((3, 4) if name in CELLS else (5, 3, 4))
    if name in LAYERS:
        assert f"{attribute} is on meta" in fused_rnn.explain(module, x)
    else:
        assert "at least two devices, cpu and meta" in fused_rnn.explain(module, x)
    with pytest.raises(RuntimeError):
        module(x)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_transform(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 7)
    x = torch.randn((3, 4) if name in CELLS else (5, 3, 4))
    found = []

    def total(x: Tensor) -> Tensor:
        found.append(fused_rnn.explain(module, x))
        return flatten(module(x))[0].sum()

    torch.func.grad(total)(x)
    assert found[0].way == "reference"
    assert "torch.func transform" in found[0]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_default_device_does_not_matter(name: str, device: str) -> None:
    """torch.device as a context is a __torch_function__ mode as well, but only for factories."""
    layer, x = getattr(fused_rnn, name)(4, 7), torch.randn(5, 3, 4)
    expected = flatten(layer(x))
    with torch.device(device):
        assert fused_rnn.explain(layer, x).way == "fused"
        actual = flatten(layer(x))
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_subclass_among_states_and_weights(name: str) -> None:
    x = torch.randn((3, 4) if name in CELLS else (5, 3, 4))
    h = torch.randn((3, 7) if name in CELLS else (1, 3, 7)).as_subclass(Marked)
    module = getattr(fused_rnn, name)(4, 7)
    explanation = fused_rnn.explain(module, x, (h, h) if name.startswith("LSTM") else h)
    assert "hx is not made of plain tensors" in explanation
    attribute = "weight_hh" if name in CELLS else "weight_hh_l0"
    weight = getattr(module, attribute).detach().as_subclass(Marked)
    setattr(module, attribute, torch.nn.Parameter(weight))
    assert "a weight is not a plain tensor" in fused_rnn.explain(module, x)
    assert flatten(module(x))[0].shape[-1] == 7


X = torch.randn(5, 3, 4)
H = torch.zeros(1, 3, 7)


@pytest.mark.parametrize(
    ("name", "x", "hx", "text"),
    [
        ("GRU", X[None], None, "the input has 4 dimensions"),
        ("GRU", X[..., :2], None, "the input has 2 features, and input_size is 4"),
        ("GRU", X.double(), None, "weight_ih_l0 is torch.float32, and the input torch.float64"),
        ("GRU", X.to_sparse(), None, "the input has the layout torch.sparse_coo"),
        ("GRU", X, H[:, :2], "hidden[0] must have the size [1, 3, 7], got [1, 2, 7]"),
        ("GRU", X, H.double(), "hidden[0] is torch.float64, and the input torch.float32"),
        ("GRU", X, H.to("meta"), "hidden[0] is on meta, and the input on cpu"),
        ("GRU", X[:, 0], H[:, :2], "hidden[0] must have the size [1, 7], got [1, 2, 7]"),
        ("GRU", "x", None, "the input is a str, not a plain tensor"),
        ("GRU", X, (H,), "hx is not made of plain tensors"),
        ("LSTM", X, (H,), "hx must hold 2 tensors, got 1"),
        ("LSTM", X, H, "hx must hold 2 tensors, got 1"),
        ("LSTM", X, (H, H[..., :6]), "hidden[1] must have the size [1, 3, 7], got [1, 3, 6]"),
        ("LSTMCell", X, None, "the input has 3 dimensions"),
        ("LSTMCell", X[0, :, :2], None, "the input has 2 features, and input_size is 4"),
        ("LSTMCell", X[0], (H[0],), "hx must hold 2 tensors, got 1"),
        ("LSTMCell", X[0], (H[0], H[0, :2]), "hx[1] must have the size [3, 7], got [2, 7]"),
        ("GRUCell", X[0].to_sparse(), None, "the input has the layout torch.sparse_coo"),
        ("GRUCell", "x", None, "the input is a str, not a plain tensor"),
        ("GRUCell", X[0], H[0].double(), "hx[0] is torch.float64"),
    ],
)
def test_misfits_are_named(name: str, x: Any, hx: Any, text: str) -> None:
    explanation = fused_rnn.explain(getattr(fused_rnn, name)(4, 7), x, hx)
    assert explanation.way == "torch"
    assert text in explanation


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch_of_packed_rows(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7)
    nothing = PackedSequence(X[:0, 0], torch.tensor([], dtype=torch.int64))
    assert "the input is empty" in fused_rnn.explain(layer, nothing)


def test_fused_says_which_instruction_set() -> None:
    from fused_rnn import _C

    explanation = fused_rnn.explain(fused_rnn.LSTM(4, 7), X)
    config = _C.config()
    assert isinstance(explanation, Explanation)
    assert isinstance(explanation, str)
    assert explanation == f"fused: the {config['isa_active']} kernels run ({config['isa_reason']})"
    assert (explanation.way, explanation.reason) == ("fused", config["isa_reason"])


def test_torchs_own_module_is_told_from_ours() -> None:
    explanation = fused_rnn.explain(torch.nn.LSTM(4, 7), X)
    assert explanation.way == "torch"
    assert "fused_rnn.accelerate makes it one" in explanation


def test_explain_is_for_recurrent_modules() -> None:
    with pytest.raises(TypeError, match="recurrent layer or cell, got Linear"):
        fused_rnn.explain(torch.nn.Linear(4, 7), X)


def test_explain_does_not_run_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fused_rnn.LSTM(4, 7, num_layers=2, dropout=0.5)
    monkeypatch.setattr(fused_rnn.LSTM, "forward", None)
    state = torch.get_rng_state()
    assert fused_rnn.explain(layer, X).way == "fused"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_usual_call_is_not_torchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the results agree would not show that the operators computed them."""
    module = getattr(fused_rnn, name)(4, 7)
    monkeypatch.setattr(getattr(torch.nn, name), "forward", None)
    x = X[0] if name in CELLS else X
    sum(result.sum() for result in flatten(module(x))).backward()
    module(x[0] if name in CELLS else x[:, 0])
    if name in LAYERS:
        module(pack_sequence([X[:, 0], X[:2, 1]]))
