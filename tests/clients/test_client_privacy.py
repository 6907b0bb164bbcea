"""Differential privacy: opacus, which has recurrent layers of its own and refuses torch.nn's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from before_and_after import swapped_names
from cases import TOLERANCE, assert_close

# Its own words are about neither: it takes a layer's outputs, a tuple, for a tensor.
REFUSAL = r"only integer tensors|output with shape"

BATCH, STEPS, INPUTS, HIDDEN = 3, 5, 4, 6


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(INPUTS, HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


def data_loader() -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(12, STEPS, INPUTS), torch.randint(2, (12,)))
    return torch.utils.data.DataLoader(data, batch_size=4)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_agree_with_dp_layers(kind: str) -> None:
    """opacus's layers are made to have the results and gradients of torch.nn's."""
    layers = pytest.importorskip("opacus.layers", reason="opacus is not installed")
    ours = getattr(fused_rnn, kind)(INPUTS, HIDDEN, num_layers=2, bidirectional=True)
    theirs = getattr(layers, "DP" + kind)(INPUTS, HIDDEN, num_layers=2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(STEPS, BATCH, INPUTS)
    weights = torch.randn(STEPS, BATCH, 2 * HIDDEN)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)[0]
        (output * weights).sum().backward()
        results.append((output, leaf.grad))
    for name, actual, expected in zip(("output", "grad"), *results, strict=True):
        assert_close(name, actual, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_fixed_model_is_left_alone(kind: str) -> None:
    """opacus's layers are no subclasses of torch.nn's, so `accelerate` does not touch them, and
    per-sample gradients stay what they are."""
    validators = pytest.importorskip("opacus.validators", reason="opacus is not installed")
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    fixed = validators.ModuleValidator.fix(Net(kind))
    before = [type(module) for module in fixed.modules()]
    fused_rnn.accelerate(fixed)
    assert [type(module) for module in fixed.modules()] == before
    wrapped = opacus.GradSampleModule(fixed)
    wrapped(torch.randn(BATCH, STEPS, INPUTS)).sum().backward()
    for parameter in wrapped.parameters():
        assert parameter.grad_sample.shape == (BATCH, *parameter.shape)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_fixer_knows_torchs_classes_alone(kind: str) -> None:
    """opacus looks modules up by their exact class: restore a model before it is fixed."""
    validators = pytest.importorskip("opacus.validators", reason="opacus is not installed")
    layers = pytest.importorskip("opacus.layers", reason="opacus is not installed")
    model = fused_rnn.accelerate(Net(kind))
    assert type(validators.ModuleValidator.fix(model).layer) is getattr(fused_rnn, kind)
    fixed = validators.ModuleValidator.fix(fused_rnn.restore(model))
    assert type(fixed.layer) is getattr(layers, "DP" + kind)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_per_sample_gradients_are_refused(kind: str, accelerated: bool) -> None:
    """What opacus does with a layer that it was not told of: an error, and no wrong gradients."""
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    model = Net(kind)
    if accelerated:
        fused_rnn.accelerate(model)
    wrapped = opacus.GradSampleModule(model)
    with pytest.raises((TypeError, RuntimeError), match=REFUSAL):
        wrapped(torch.randn(BATCH, STEPS, INPUTS)).sum().backward()


def private_step(model: nn.Module, mode: str) -> None:
    """Forward and backward as opacus's PrivacyEngine sets them up."""
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    criterion: Any = nn.CrossEntropyLoss()
    model, *others = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=data_loader(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
        **({"criterion": criterion} if mode == "ghost" else {}),
    )
    if mode == "ghost":
        criterion = others[1]
    x, labels = next(iter(others[-1]))
    criterion(model(x), labels).backward()


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_training_is_refused(kind: str, mode: str) -> None:
    """Of torch.nn's layers the validator says so; of ours it does not know, and the step fails."""
    pytest.importorskip("opacus", reason="opacus is not installed")
    with pytest.raises((TypeError, RuntimeError), match=REFUSAL):
        private_step(fused_rnn.accelerate(Net(kind)), mode)


def test_expanded_weights_of_lstm_are_refused() -> None:
    pytest.importorskip("opacus", reason="opacus is not installed")
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle"):
        private_step(fused_rnn.accelerate(Net("LSTM")), "ew")


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_expanded_weights_are_right(kind: str) -> None:
    """The mode "ew" is torch's own per-sample gradients. They go to torch's implementation, which
    has them for GRU and RNN, and each sample's are those of the sample alone."""
    samples = pytest.importorskip("opacus.grad_sample", reason="opacus is not installed")
    model = fused_rnn.accelerate(Net(kind))
    x = torch.randn(BATCH, STEPS, INPUTS)
    alone = []
    for row in x:
        loss = model(row.unsqueeze(0)).square().sum()
        alone.append(torch.autograd.grad(loss, list(model.parameters())))
    wrapped = samples.GradSampleModuleExpandedWeights(model, loss_reduction="sum")
    wrapped(x).square().sum().backward()
    for parameter, *rows in zip(model.parameters(), *alone, strict=True):
        assert_close("grad", parameter.grad_sample, torch.stack(rows), TOLERANCE[torch.float32])


def test_validator_reads_the_name_at_import() -> None:
    """The import swap does not reach opacus's tables, which hold torch.nn's classes already."""
    validators = pytest.importorskip("opacus.validators", reason="opacus is not installed")
    with swapped_names():
        assert validators.ModuleValidator.is_valid(Net("LSTM"))
    assert not validators.ModuleValidator.is_valid(Net("LSTM"))
