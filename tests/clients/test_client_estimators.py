"""Wrappers around any net: skorch and pyro."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from before_and_after import Prepare, check
from cases import TOLERANCE, assert_close


class Classifier(nn.Module):
    """Reads torch.nn when it is built, as a user's own net would."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.layer = nn.GRU(5, hidden, num_layers=2, batch_first=True)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1]).softmax(-1)


def series() -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(96, 20, 5)).astype(np.float32)
    return x, x.sum((1, 2)).argsort().argsort() // 32


def classifier(skorch: Any, **more: Any) -> Any:
    settings = {"max_epochs": 2, "lr": 0.05, "train_split": None, "verbose": 0} | more
    return skorch.NeuralNetClassifier(Classifier, **settings)


def test_skorch() -> None:
    """The import swap, and what scikit-learn does with an estimator: fit, clone, pickle."""
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, y = series()
        net = base.clone(classifier(skorch)).fit(x, y)
        prepare(net.module_)
        chances = pickle.loads(pickle.dumps(net)).predict_proba(x)
        losses = torch.tensor(net.history[:, "train_loss"])
        return [torch.from_numpy(chances), losses]

    check("skorch, fit and predict", run, names=True)


def test_skorch_grid_search() -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is missing")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, y = series()
        grid = {"module__hidden": [8, 16], "lr": [0.05, 0.1]}
        search = selection.GridSearchCV(
            classifier(skorch), grid, cv=2, scoring="neg_log_loss", refit=False
        )
        return [torch.tensor(search.fit(x, y).cv_results_["mean_test_score"])]

    # Float32 losses that scikit-learn averages in float64.
    check("skorch, grid search", lambda p: [r.float() for r in run(p)], names=True)


def test_skorch_model_that_is_swapped_after_fit() -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, y = series()
        net = classifier(skorch).initialize()
        prepare(net.module_)
        net.partial_fit(x, y)
        return [torch.from_numpy(net.predict_proba(x)), torch.tensor(net.history[:, "train_loss"])]

    check("skorch, initialized and swapped", run)


def test_pyro_deep_markov_guide() -> None:
    """Variational inference with a guide that reads packed sequences, as in a deep Markov model."""
    pyro = pytest.importorskip("pyro", reason="pyro-ppl is not installed")
    infer = pytest.importorskip("pyro.infer", reason="pyro-ppl is not installed")
    normal = pytest.importorskip("pyro.distributions", reason="pyro-ppl is not installed").Normal

    def run(prepare: Prepare) -> Sequence[Tensor]:
        pyro.clear_param_store()
        net = prepare(
            nn.ModuleDict({"read": nn.RNN(6, 16, batch_first=True), "out": nn.Linear(16, 8)})
        )
        x, lengths = torch.randn(10, 12, 6), torch.arange(12, 2, -1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        emit = nn.Linear(4, 6)

        def model() -> None:
            pyro.module("emit", emit)
            with pyro.plate("rows", 10):
                z = pyro.sample("z", normal(torch.zeros(10, 4), 1.0).to_event(1))
                pyro.sample("x", normal(emit(z), 1.0).to_event(1), obs=x[:, 0])

        def guide() -> None:
            pyro.module("net", net)
            _, last = net["read"](packed)
            mean, deviation = net["out"](last[0]).chunk(2, -1)
            with pyro.plate("rows", 10):
                pyro.sample("z", normal(mean, deviation.exp()).to_event(1))

        svi = infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), loss=infer.Trace_ELBO())
        return [torch.tensor([svi.step() for _ in range(5)]), *net.parameters()]

    check("pyro, variational inference", run)


def test_pyro_modules_of_random_weights() -> None:
    """PyroModule derives a class from the layer's, and its weights are drawn anew at each call."""
    nn_of_pyro = pytest.importorskip("pyro.nn", reason="pyro-ppl is not installed")
    distributions = pytest.importorskip("pyro.distributions", reason="pyro-ppl is not installed")
    results = []
    for library in (nn, fused_rnn):
        torch.manual_seed(0)
        layer = nn_of_pyro.PyroModule[library.GRU](3, 5)
        assert isinstance(layer, library.GRU)
        layer.weight_hh_l0 = nn_of_pyro.PyroSample(
            distributions.Normal(0.0, 1.0).expand([15, 5]).to_event(2)
        )
        x = torch.randn(4, 2, 3)
        results.append([layer(x)[0] for _ in range(2)])
    for expected, actual in zip(*results, strict=True):
        assert_close("output", actual, expected, TOLERANCE[torch.float32])
    assert not torch.equal(results[1][0], results[1][1])
