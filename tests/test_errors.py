"""Bad input raises what torch.nn raises: the same type with the same message."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn

LAYERS = ("LSTM", "GRU", "RNN")


def both(name: str, *arguments: Any, **more: Any) -> tuple[Any, Any]:
    ours = getattr(fused_rnn, name)(*arguments, **more)
    theirs = getattr(torch.nn, name)(*arguments, **more)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_same_error(ours: Any, theirs: Any, *arguments: Any) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(*arguments)
    with pytest.raises(type(expected.value)) as actual:
        ours(*arguments)
    assert type(actual.value) is type(expected.value)
    assert str(actual.value) == str(expected.value)


def states(name: str, *shape: int, **more: Any) -> Any:
    h = torch.zeros(shape, **more)
    return (h, h.clone()) if name.startswith("LSTM") else h


X = torch.randn(5, 3, 4)

BAD_INPUTS = {
    "no dimension": torch.tensor(1.0),
    "one dimension": X[0, 0],
    "four dimensions": X[None],
    "too wide": torch.randn(5, 3, 6),
    "too wide, no batch": torch.randn(5, 6),
    "nothing": torch.randn(0, 0, 4),
    "no steps, no batch": X[:0, 0],
    "float64": X.double(),
    "bfloat16": X.bfloat16(),
    "integers": X.long(),
    "None": None,
    "a list": [1.0, 2.0],
    "packed, of no steps": PackedSequence(X[:0, 0], torch.tensor([], dtype=torch.int64)),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_input(name: str, bad: str, batch_first: bool) -> None:
    assert_same_error(*both(name, 4, 7, batch_first=batch_first), BAD_INPUTS[bad])


@pytest.mark.parametrize("name", LAYERS)
def test_no_steps(name: str) -> None:
    assert_same_error(*both(name, 4, 7), X[:0])
    assert_same_error(*both(name, 4, 7, batch_first=True), X[:, :0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "shape", [(), (7,), (1, 7), (2, 7), (3, 7), (1, 2, 7), (2, 3, 7), (1, 3, 6), (1, 5, 6, 7)]
)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_state(name: str, shape: Any, batched: bool, batch_first: bool) -> None:
    if not batched and shape == (1, 7):
        return  # The right one.
    ours, theirs = both(name, 4, 7, batch_first=batch_first)
    assert_same_error(ours, theirs, X if batched else X[:, 0], states(name, *shape))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_layer_state_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    assert_same_error(*both(name, 4, 7), X, states(name, 1, 3, 7, dtype=dtype))


H = torch.zeros(1, 3, 7)


@pytest.mark.parametrize("hx", [H, [H], (H,), (H, H, H), (H, None), (None, H), (H, 1.0), "hc"])
@pytest.mark.parametrize("packed", [False, True])
def test_lstm_states_that_are_no_pair(hx: Any, packed: bool) -> None:
    x = pack_sequence([torch.randn(2, 4)] * 3) if packed else X
    assert_same_error(*both("LSTM", 4, 7), x, hx)


@pytest.mark.parametrize("name", ["GRU", "RNN"])
@pytest.mark.parametrize("hx", [(H,), [H, H], 1.0])
def test_states_that_are_no_tensor(name: str, hx: Any) -> None:
    assert_same_error(*both(name, 4, 7), X, hx)


def test_states_of_a_projection() -> None:
    ours, theirs = both("LSTM", 4, 7, proj_size=3)
    for h, c in (((1, 3, 7), (1, 3, 7)), ((1, 3, 3), (1, 3, 3)), ((1, 3, 7), (1, 3, 3))):
        assert_same_error(ours, theirs, X, (torch.zeros(h), torch.zeros(c)))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_do_not_fit(name: str) -> None:
    for attribute, change in (
        ("weight_hh_l0", lambda p: p[:, :5]),
        ("weight_ih_l0", lambda p: p[:5]),
        ("weight_hh_l0", lambda p: p.double()),
    ):
        ours, theirs = both(name, 4, 7)
        for layer in (ours, theirs):
            parameter = torch.nn.Parameter(change(getattr(layer, attribute).detach()))
            setattr(layer, attribute, parameter)
        if name == "LSTM" and getattr(ours, attribute).dtype == X.dtype:
            # torch does not look and answers with what lies beyond the end of the weight.
            for x in (X, pack_sequence([X[:, 0]])):
                assert fused_rnn.explain(ours, x).way == "error"
                with pytest.raises(RuntimeError, match=rf"^Expected {attribute} size \(28, "):
                    ours(x)
        else:
            assert_same_error(ours, theirs, X)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_input_that_does_not_fit(name: str) -> None:
    """torch's words, also for the LSTM, where torch has no check."""
    layer = getattr(fused_rnn, name)(4, 7)
    for count in (1, 2):
        packed = pack_sequence([torch.randn(2, 6)] * count)
        with pytest.raises(RuntimeError, match=r"equal to input_size. Expected 4, got 6"):
            layer(packed)
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        layer(PackedSequence(X, torch.tensor([3, 2])))
    words = r"RNN input dtype \(torch.float64\) does not match|got type torch.float64$"
    with pytest.raises(ValueError, match=words):
        layer(pack_sequence([X[:, 0].double()]))


@pytest.mark.parametrize("name", LAYERS)
def test_missing_weight(name: str) -> None:
    ours, theirs = both(name, 4, 7)
    ours.weight_hh_l0 = theirs.weight_hh_l0 = None
    assert_same_error(ours, theirs, X)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((0, 3), {}),
        ((3, 0), {}),
        ((3, 4, 0), {}),
        ((3.0, 4), {}),
        ((3, "4"), {}),
        ((3, 4), {"dropout": 2}),
        ((3, 4), {"dropout": True}),
        ((3, 4), {"dropout": "half"}),
        ((3, 4), {"bias": 1}),
        ((3, 4), {"batch_first": "yes"}),
        ((3, 4), {"proj_size": 4}),
        ((3, 4), {"proj_size": -1}),
        ((3, 4), {"nonlinearity": "sigmoid"}),
        ((), {}),
    ],
)
def test_constructor(name: str, arguments: Any, more: Any) -> None:
    """torch's errors, and none where a release has none."""
    found = []
    for package in (torch.nn, fused_rnn):
        try:
            getattr(package, name)(*arguments, **more)
        except Exception as error:
            found.append((type(error), str(error)))
        else:
            found.append(None)
    assert found[0] == found[1]
    assert found[0] is not None or torch.__version__ < "2.11"


@pytest.mark.parametrize("name", LAYERS)
def test_constructor_warns_of_useless_dropout(name: str) -> None:
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        getattr(fused_rnn, name)(3, 4, dropout=0.5)


CELLS = ("LSTMCell", "GRUCell", "RNNCell")

BAD_CELL_INPUTS = {
    "no dimension": torch.tensor(1.0),
    "three dimensions": X,
    "too wide": torch.randn(3, 6),
    "too wide, no batch": torch.randn(6),
    "float64": X[0].double(),
    "bfloat16": X[0].bfloat16(),
    "integers": X[0].long(),
    "None": None,
    "a list": [1.0, 2.0],
}


@pytest.mark.parametrize("bad", BAD_CELL_INPUTS)
@pytest.mark.parametrize("name", CELLS)
def test_cell_input(name: str, bad: str) -> None:
    assert_same_error(*both(name, 4, 7), BAD_CELL_INPUTS[bad])


@pytest.mark.parametrize("shape", [(), (7,), (2, 7), (3, 6), (1, 3, 7)])
@pytest.mark.parametrize("name", CELLS)
def test_cell_state(name: str, shape: Any) -> None:
    assert_same_error(*both(name, 4, 7), X[0], states(name, *shape))


@pytest.mark.parametrize("shape", [(), (6,), (2, 7), (1, 1, 7)])
@pytest.mark.parametrize("name", CELLS)
def test_cell_state_without_batch(name: str, shape: Any) -> None:
    assert_same_error(*both(name, 4, 7), X[0, 0], states(name, *shape))


@pytest.mark.parametrize("name", CELLS)
def test_cell_state_of_another_dtype(name: str) -> None:
    assert_same_error(*both(name, 4, 7), X[0], states(name, 3, 7, dtype=torch.float64))


@pytest.mark.parametrize("hx", [[H[0]], (H[0],), (H[0],) * 3, (H[0], None), 1.0])
def test_lstm_cell_states_that_are_no_pair(hx: Any) -> None:
    assert_same_error(*both("LSTMCell", 4, 7), X[0], hx)


@pytest.mark.parametrize("name", CELLS)
def test_cell_weights_that_do_not_fit(name: str) -> None:
    for attribute, change in (
        ("weight_hh", lambda p: p[:, :5]),
        ("weight_ih", lambda p: p[:5]),
        ("bias_hh", lambda p: p[:5]),
        ("weight_hh", lambda p: p.double()),
    ):
        ours, theirs = both(name, 4, 7)
        for cell in (ours, theirs):
            setattr(cell, attribute, torch.nn.Parameter(change(getattr(cell, attribute).detach())))
        assert_same_error(ours, theirs, X[0])


def test_unknown_nonlinearity_of_a_cell() -> None:
    assert_same_error(*both("RNNCell", 4, 7, nonlinearity="sigmoid"), X[0])


def test_our_errors_do_not_hide_torchs() -> None:
    """torch's error is raised on its own, not while another one is handled."""
    with pytest.raises(RuntimeError) as error:
        fused_rnn.GRU(4, 7)(X, torch.zeros(1, 2, 7))
    assert error.value.__context__ is None


def test_errors_of_the_kernels_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nothing about the tensors explains is not taken for bad input."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    for module in ("layers", "cells"):
        monkeypatch.setattr(f"fused_rnn.{module}.direct", lambda *_: None)
    monkeypatch.setattr("fused_rnn.layers.sequence", broken)
    monkeypatch.setattr("fused_rnn.cells.cell", broken)
    for call in (
        lambda: fused_rnn.LSTM(4, 7)(X),
        lambda: fused_rnn.LSTM(4, 7)(pack_sequence([X[:, 0]])),
        lambda: fused_rnn.LSTMCell(4, 7)(X[0]),
    ):
        with pytest.raises(RuntimeError, match="out of luck"):
            call()


@pytest.mark.parametrize(
    "x",
    [X, X[:, 0], pack_sequence([X[:, 0], X[:2, 1]])],
    ids=["batch", "no batch", "packed"],
)
def test_empty_layer_state(x: Any) -> None:
    """An empty hx is not a missing one."""
    assert_same_error(*both("LSTM", 4, 7), x, ())


@pytest.mark.parametrize("x", [X[0], X[0, 0]], ids=["batch", "no batch"])
def test_empty_cell_state(x: Any) -> None:
    assert_same_error(*both("LSTMCell", 4, 7), x, ())
