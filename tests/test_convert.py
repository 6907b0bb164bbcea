"""accelerate and restore: what changes is the class, and nothing else."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_rnn
from cases import assert_close, flatten

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 6, num_layers=2, bidirectional=True, dropout=0.25)
        self.blocks = nn.ModuleList([nn.GRU(12, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())])
        self.rnn = nn.RNN(6, 6, nonlinearity="relu")
        self.again = self.rnn
        self.cells = nn.ModuleDict({"l": nn.LSTMCell(6, 6), "g": nn.GRUCell(6, 6)})
        self.last = nn.RNNCell(6, 6)
        self.register_buffer("scale", torch.ones(1))
        self.aside = (self.encoder,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.encoder(x)
        x, _ = self.blocks[0](x)
        x, _ = self.rnn(self.blocks[1](x))
        x, _ = self.again(x)
        h, _ = self.cells["l"](x[-1])
        return self.last(self.cells["g"](h)) * self.scale


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}


def test_every_layer_is_swapped_and_back() -> None:
    model = Model().eval()
    before = classes(model)
    identities = [id(m) for m in model.modules()]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    x = torch.randn(5, 3, 4)
    expected = model(x)

    assert fused_rnn.accelerate(model) is model
    for name, kind in classes(model).items():
        plain = before[name]
        assert kind is getattr(fused_rnn, plain.__name__, plain)
    assert [id(m) for m in model.modules()] == identities
    assert model.again is model.rnn
    assert model.aside[0] is model.encoder
    now = dict(model.named_parameters(remove_duplicate=False))
    assert list(now) == list(parameters)
    assert all(now[name] is parameters[name] for name in now)
    assert not any(m.training for m in model.modules())
    assert_close("output", model(x), expected, 2e-5)

    assert fused_rnn.restore(model) is model
    assert classes(model) == before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_root_itself(name: str) -> None:
    module = getattr(nn, name)(3, 4)
    assert fused_rnn.accelerate(module) is module
    assert type(module) is getattr(fused_rnn, name)
    assert fused_rnn.accelerate(module) is module
    assert type(module) is getattr(fused_rnn, name)
    assert type(fused_rnn.restore(module)) is getattr(nn, name)


def test_repeated_and_mixed_use() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), fused_rnn.GRU(3, 4))
    fused_rnn.accelerate(model)
    fused_rnn.accelerate(model)
    assert [type(m) for m in model] == [fused_rnn.LSTM, fused_rnn.GRU]
    fused_rnn.restore(model)
    assert [type(m) for m in model] == [nn.LSTM, nn.GRU]


def test_hooks_of_all_kinds_stay() -> None:
    layer = nn.LSTM(3, 4)
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda *_, **__: calls.append(name)

    layer.register_forward_pre_hook(note("forward_pre"))
    layer.register_forward_hook(note("forward"))
    layer.register_full_backward_pre_hook(note("backward_pre"))
    layer.register_full_backward_hook(note("backward"))
    layer.register_state_dict_pre_hook(note("state_dict_pre"))
    layer.register_state_dict_post_hook(note("state_dict"))
    layer.register_load_state_dict_pre_hook(note("load_pre"))
    layer.register_load_state_dict_post_hook(note("load"))
    layer.weight_ih_l0.register_hook(lambda grad: calls.append("weight"))
    for change in (fused_rnn.accelerate, fused_rnn.restore):
        calls.clear()
        change(layer)
        layer(torch.randn(2, 1, 3, requires_grad=True))[0].sum().backward()
        layer.load_state_dict(layer.state_dict())
        assert sorted(calls) == sorted(
            [
                *("forward_pre", "forward", "backward_pre", "backward", "weight"),
                *("state_dict_pre", "state_dict", "load_pre", "load"),
            ]
        )


def test_attributes_mode_and_optimizer_stay() -> None:
    model = nn.Sequential(nn.GRU(3, 4), nn.LSTM(4, 4).eval())
    model[0].note = "mine"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fused_rnn.accelerate(model)
    assert model[0].note == "mine"
    assert [m.training for m in model] == [True, False]
    before = model[0].weight_ih_l0.detach().clone()
    model[0](torch.randn(3, 2, 3))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight_ih_l0, before)


def test_users_subclasses_are_left_alone() -> None:
    class Mine(nn.LSTM):
        pass

    class Ours(fused_rnn.LSTM):
        pass

    model = nn.Sequential(Mine(3, 4), Ours(3, 4))
    fused_rnn.accelerate(model)
    assert [type(m) for m in model] == [Mine, Ours]
    fused_rnn.restore(model)
    assert [type(m) for m in model] == [Mine, Ours]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_parametrized_modules(name: str, norm: Any) -> None:
    attribute = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    module = norm(getattr(nn, name)(3, 4), attribute).eval()
    twin = copy.deepcopy(module)
    x = torch.randn(5, 3)
    with torch.no_grad():
        expected = flatten(module(x))
    original = type(module)
    names = [n for n, _ in module.named_parameters()]

    fused_rnn.accelerate(module)
    assert isinstance(module, getattr(fused_rnn, name))
    assert type(module).__name__ == f"Parametrized{name}"
    assert fused_rnn.explain(module, x).way == "fused"
    assert parametrize.is_parametrized(module, attribute)
    assert [n for n, _ in module.named_parameters()] == names
    for one, other in zip(flatten(module(x)), expected, strict=True):
        assert_close("result", one, other, 2e-5)
    flatten(module(x))[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    copied = copy.deepcopy(module)
    assert torch.equal(flatten(copied(x))[0], flatten(module(x))[0])
    # A deep copy made earlier shares the class that parametrize derived.
    assert type(twin) is original
    assert not isinstance(twin, getattr(fused_rnn, name))

    fused_rnn.restore(copied)
    assert not isinstance(copied, getattr(fused_rnn, name))
    assert_close("result", flatten(copied(x))[0], expected[0], 2e-5)
    parametrize.remove_parametrizations(module, attribute)
    assert type(module) is getattr(fused_rnn, name)


@pytest.mark.parametrize("name", ["GRU", "LSTMCell"])
def test_pruned_modules(name: str) -> None:
    attribute = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    module = prune.l1_unstructured(getattr(nn, name)(3, 4), attribute, amount=0.5)
    x = torch.randn(5, 3)
    expected = flatten(module(x))
    fused_rnn.accelerate(module)
    assert type(module) is getattr(fused_rnn, name)
    assert fused_rnn.explain(module, x).way == "fused"
    for one, other in zip(flatten(module(x)), expected, strict=True):
        assert_close("result", one, other, 2e-5)
    flatten(module(x))[0].sum().backward()
    gradient = getattr(module, f"{attribute}_orig").grad
    assert not gradient[getattr(module, f"{attribute}_mask") == 0].any()
    prune.remove(module, attribute)
    for one, other in zip(flatten(module(x)), expected, strict=True):
        assert_close("result", one, other, 2e-5)


def test_a_model_without_recurrent_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    before = classes(model)
    assert classes(fused_rnn.accelerate(model)) == before


def test_scripted_modules_are_left_alone() -> None:
    scripted = torch.jit.script(Container())
    before = [type(m) for m in scripted.modules()]
    fused_rnn.accelerate(scripted)
    assert [type(m) for m in scripted.modules()] == before


class Container(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def test_saved_after_restore_needs_torch_alone() -> None:
    model = fused_rnn.restore(fused_rnn.accelerate(Container()))
    buffer = io.BytesIO()
    torch.save(model.layer, buffer)
    assert b"fused_rnn" not in buffer.getvalue()
