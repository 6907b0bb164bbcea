"""That the modules are torch.nn's in all but the forward pass."""

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import fused_rnn
from cases import assert_close, flatten

LAYERS = ("LSTM", "GRU", "RNN")
NAMES = (*LAYERS, "LSTMCell", "GRUCell", "RNNCell")

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, {"bias": False}],
    "GRU": [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, {"bias": False}],
    "RNN": [{}, {"nonlinearity": "relu", "batch_first": True}, {"bias": False}],
    "LSTMCell": [{}, {"bias": False}],
    "GRUCell": [{}, {"bias": False}],
    "RNNCell": [{}, {"nonlinearity": "relu"}],
}
ALL = [(name, more) for name in NAMES for more in SETTINGS[name]]


def input_for(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((3, 4) if name.endswith("Cell") else (5, 3, 4), dtype=dtype)


@pytest.mark.parametrize(("name", "more"), ALL, ids=str)
def test_same_values_under_one_seed(name: str, more: dict[str, Any]) -> None:
    torch.manual_seed(5)
    ours = getattr(fused_rnn, name)(4, 7, **more)
    torch.manual_seed(5)
    theirs = getattr(nn, name)(4, 7, **more)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    ours.reset_parameters()
    theirs.reset_parameters()
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()


@pytest.mark.parametrize(("name", "more"), ALL, ids=str)
def test_state_dict_goes_both_ways(name: str, more: dict[str, Any]) -> None:
    ours, theirs = getattr(fused_rnn, name)(4, 7, **more), getattr(nn, name)(4, 7, **more)
    x = input_for(name)
    for source, target in ((ours, theirs), (theirs, ours)):
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True))
        source.eval(), target.eval()
        for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
            assert_close("result", one, other, 2e-5)
        source.reset_parameters()


@pytest.mark.parametrize("name", NAMES)
def test_positional_arguments_are_torchs(name: str) -> None:
    arguments = {"RNN": (4, 7, 2, "relu", False), "RNNCell": (4, 7, False, "relu")}.get(
        name, (4, 7, False) if name.endswith("Cell") else (4, 7, 2, False, True)
    )
    assert repr(getattr(fused_rnn, name)(*arguments)) == repr(getattr(nn, name)(*arguments))


@pytest.mark.parametrize("name", NAMES)
def test_is_an_instance_of_torchs(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 7)
    assert isinstance(module, getattr(nn, name))
    assert type(module).__name__ == name
    assert getattr(fused_rnn, name).__doc__


@pytest.mark.parametrize(("name", "more"), ALL, ids=str)
def test_copies_and_pickles(name: str, more: dict[str, Any]) -> None:
    module = getattr(fused_rnn, name)(4, 7, **more).eval()
    x = input_for(name)
    expected = flatten(module(x))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert type(other) is type(module)
        assert fused_rnn.explain(other, x).way == "fused"
        for one, two in zip(flatten(other(x)), expected, strict=True):
            assert torch.equal(one, two)
    with torch.no_grad():
        copies[1].get_parameter(next(iter(module.state_dict()))).zero_()
    assert torch.equal(flatten(module(x))[0], expected[0])


@pytest.mark.parametrize("name", NAMES)
def test_changed_weights_are_seen(name: str) -> None:
    """In place, by .data, by a new Parameter, by loading, by moving, by another dtype."""
    ours, theirs = getattr(fused_rnn, name)(4, 7), getattr(nn, name)(4, 7)
    theirs.load_state_dict(ours.state_dict())
    attribute = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    x = input_for(name)

    def in_place(module: nn.Module) -> None:
        with torch.no_grad():
            getattr(module, attribute).mul_(2)

    def by_data(module: nn.Module) -> None:
        getattr(module, attribute).data = getattr(module, attribute).data * 0.5

    def by_parameter(module: nn.Module) -> None:
        setattr(module, attribute, nn.Parameter(getattr(module, attribute).detach() * 3))

    def by_loading(module: nn.Module) -> None:
        module.load_state_dict({k: -v for k, v in module.state_dict().items()})

    def by_sharing(module: nn.Module) -> None:
        module.share_memory()

    def by_casting(module: nn.Module) -> None:
        module.double()

    for change in (in_place, by_data, by_parameter, by_loading, by_sharing, by_casting):
        change(ours), change(theirs)
        x = x.to(next(ours.parameters()).dtype)
        assert fused_rnn.explain(ours, x).way == "fused"
        for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
            assert_close(change.__name__, one, other, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_functional_call(name: str) -> None:
    module, other = getattr(fused_rnn, name)(4, 7), getattr(fused_rnn, name)(4, 7)
    x = input_for(name)
    own = flatten(module(x))
    params = {k: v.detach().clone().requires_grad_() for k, v in other.named_parameters()}
    called = flatten(torch.func.functional_call(module, params, (x,)))
    for one, two in zip(called, flatten(other(x)), strict=True):
        assert torch.equal(one, two)
    called[0].sum().backward()
    assert all(p.grad is not None for p in params.values())
    assert all(p.grad is None for p in module.parameters())
    for one, two in zip(flatten(module(x)), own, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", LAYERS)
def test_tied_weights(name: str) -> None:
    ours, theirs = (getattr(p, name)(7, 7, num_layers=2) for p in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 7)
    for layer in (ours, theirs):
        layer.weight_hh_l1 = layer.weight_hh_l0
        layer(x)[0].sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close("grad", one.grad, other.grad, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_made_without_memory_and_filled(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 7, device="meta").to_empty(device="cpu")
    module.reset_parameters()
    x = input_for(name)
    assert fused_rnn.explain(module, x).way == "fused"
    assert flatten(module(x))[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_skip_init(name: str) -> None:
    if not name.endswith("Cell"):
        # torch.nn's layers do not name `device` in their signature, and skip_init wants it named.
        with pytest.raises(RuntimeError, match="must support a 'device' arg"):
            torch.nn.utils.skip_init(getattr(nn, name), 4, 7)
        return
    cell = torch.nn.utils.skip_init(getattr(fused_rnn, name), 4, 7)
    assert [p.shape for p in cell.parameters()] == [
        p.shape for p in getattr(nn, name)(4, 7).parameters()
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_parameter_as_input(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7)
    x = nn.Parameter(torch.randn(5, 3, 4))
    h = nn.Parameter(torch.randn(1, 3, 7))
    hx = (h, h) if name == "LSTM" else h
    assert fused_rnn.explain(layer, x, hx).way == "fused"
    layer(x, hx)[0].sum().backward()
    assert x.grad is not None
    assert h.grad is not None


@pytest.mark.parametrize("name", LAYERS)
def test_lists_of_states_and_keywords(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7)
    x, h = torch.randn(5, 3, 4), torch.randn(1, 3, 7)
    hx = [h, h] if name == "LSTM" else h
    for one, other in zip(flatten(layer(input=x, hx=hx)), flatten(layer(x, hx)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_state_of_one_call_starts_the_next(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7, num_layers=2)
    x = torch.randn(6, 3, 4)
    first, hx = layer(x[:2])
    second, _ = layer(x[2:], hx)
    assert_close("output", torch.cat([first, second]), layer(x)[0], 2e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_extra_parameters_of_users(name: str) -> None:
    class Mine(getattr(fused_rnn, name)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(4, 7)
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(x)[0]
            return output * self.gain

    mine = Mine()
    plain = getattr(nn, name)(4, 7)
    plain.load_state_dict(mine.state_dict(), strict=False)
    x = torch.randn(5, 3, 4)
    assert_close("output", mine(x), plain(x)[0], 2e-5)


def test_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fused_rnn.show_config()
    printed = capsys.readouterr().out
    for word in (fused_rnn.__version__, torch.__version__, "compiler", "threads", "CUDA", "active"):
        assert word in printed
    command = [sys.executable, "-m", "fused_rnn"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "instruction set active" in result.stdout


def run_with_broken_extension(preparation: str) -> str:
    """What importing the package says, after some preparation, as its last line of error."""
    code = f"import sys, types\n{preparation}\nimport fused_rnn"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_another_torch_is_one_clear_sentence() -> None:
    message = run_with_broken_extension(
        "m = types.ModuleType('fused_rnn._C')\n"
        "m.config = lambda: {'torch_built': '1.2.3'}\n"
        "sys.modules['fused_rnn._C'] = m"
    )
    assert message.startswith("ImportError: fused_rnn was built against torch 1.2.3 and torch ")
    assert torch.__version__ in message


def test_missing_extension_is_one_clear_sentence() -> None:
    message = run_with_broken_extension("sys.modules['fused_rnn._C'] = None")
    assert message.startswith("ImportError: fused_rnn's compiled extension fused_rnn._C is missing")
