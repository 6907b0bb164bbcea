"""Forecasting: gluonts, pytorch-forecasting, neuralforecast and darts, trained by lightning."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fused_rnn
from before_and_after import Prepare, check

SERIES, LENGTH = 6, 96
START = "2024-01-01"


def values() -> Any:
    """Noisy days of 24 hours, [SERIES, LENGTH]."""
    hours = np.arange(LENGTH) + np.arange(SERIES)[:, None]
    noise = np.random.default_rng(0).normal(size=(SERIES, LENGTH))
    return (10 + 3 * np.sin(hours * np.pi / 12) + 0.3 * noise).astype(np.float32)


def frame(pandas: Any) -> Any:
    """The same, a row for each value."""
    return pandas.concat(
        pandas.DataFrame(
            {
                "unique_id": f"s{index}",
                "ds": pandas.date_range(START, periods=LENGTH, freq="h"),
                "step": np.arange(LENGTH),
                "y": row,
            }
        )
        for index, row in enumerate(values())
    )


def quiet(directory: Path) -> dict[str, Any]:
    """A lightning trainer that writes nothing but below `directory`."""
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(directory),
    }


def losses_callback(lightning: Any) -> Any:
    class Losses(lightning.Callback):
        def __init__(self) -> None:
            self.losses: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.losses.append(outputs["loss"].detach())

    return Losses()


def test_gluonts_deepar(tmp_path: Path) -> None:
    """Trained, with dropout, and forecast by samples."""
    deepar = pytest.importorskip("gluonts.torch.model.deepar", reason="gluonts is not installed")
    dataset = pytest.importorskip("gluonts.dataset.common", reason="gluonts is not installed")
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        start = pandas.Period(START, freq="h")
        data = dataset.ListDataset([{"start": start, "target": row} for row in values()], freq="h")
        losses = losses_callback(lightning)
        estimator = deepar.DeepAREstimator(
            freq="h",
            prediction_length=12,
            context_length=24,
            lags_seq=[1, 2, 24],
            num_batches_per_epoch=6,
            batch_size=16,
            trainer_kwargs=quiet(tmp_path) | {"max_epochs": 1, "callbacks": [losses]},
        )
        predictor = estimator.train(data)
        torch.manual_seed(1)
        forecasts = [torch.from_numpy(f.samples) for f in predictor.predict(data)]
        return [*losses.losses, *forecasts]

    check("gluonts DeepAR", run, names=True)


@contextmanager
def rebased(classes: dict[Any, Any]) -> Iterator[None]:
    """For classes that are derived from torch.nn's when a package is imported: the import swap in
    that package would have derived them from fused_rnn's."""
    before = {kind: kind.__bases__ for kind in classes}
    for kind, base in classes.items():
        kind.__bases__ = (*kind.__bases__[:-1], base)
    try:
        yield
    finally:
        for kind, bases in before.items():
            kind.__bases__ = bases


@pytest.mark.parametrize(
    ("model", "cell"),
    [
        ("DeepAR", "LSTM"),
        ("DeepAR", "GRU"),
        ("RecurrentNetwork", "LSTM"),
        ("RecurrentNetwork", "GRU"),
        ("TemporalFusionTransformer", "LSTM"),
    ],
)
def test_pytorch_forecasting(tmp_path: Path, model: str, cell: str) -> None:
    """Its layers derive from torch.nn's, so `accelerate` leaves them alone, and swapping the base
    is what makes them fused. They pack sequences of any length, zero included."""
    package = pytest.importorskip("pytorch_forecasting", reason="it is not installed")
    layers = pytest.importorskip("pytorch_forecasting.models.nn.rnn", reason="it is not installed")
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    swap = {layers.LSTM: fused_rnn.LSTM, layers.GRU: fused_rnn.GRU}

    def run(prepare: Prepare) -> Sequence[Tensor]:
        data = package.TimeSeriesDataSet(
            frame(pandas).reset_index(drop=True),
            time_idx="step",
            target="y",
            group_ids=["unique_id"],
            max_encoder_length=24,
            min_encoder_length=8,
            max_prediction_length=6,
            time_varying_unknown_reals=["y"],
            randomize_length=None,
            target_normalizer=package.GroupNormalizer(groups=["unique_id"]),
        )
        more: dict[str, Any] = {"hidden_size": 16, "dropout": 0.0, "learning_rate": 0.01}
        if model != "TemporalFusionTransformer":
            more |= {"cell_type": cell, "rnn_layers": 2}
        net = getattr(package, model).from_dataset(data, **more)
        batches = data.to_dataloader(train=True, batch_size=16, num_workers=0)
        losses = losses_callback(lightning)
        trainer = lightning.Trainer(max_steps=5, callbacks=[losses], **quiet(tmp_path))
        with rebased(swap if torch.nn.LSTM is fused_rnn.LSTM else {}):
            trainer.fit(net, train_dataloaders=batches)
            torch.manual_seed(1)
            x, _ = next(iter(batches))
            with torch.no_grad():
                return [*losses.losses, net.eval()(x)["prediction"]]

    check(f"pytorch-forecasting {model} {cell}", run, names=True)


@pytest.mark.parametrize("model", ["LSTM", "GRU", "RNN", "DeepAR", "DilatedRNN"])
def test_neuralforecast(tmp_path: Path, model: str) -> None:
    package = pytest.importorskip("neuralforecast", reason="neuralforecast is not installed")
    models = pytest.importorskip("neuralforecast.models", reason="it is not installed")
    lightning = pytest.importorskip("pytorch_lightning", reason="it is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        losses = losses_callback(lightning)
        net = getattr(models, model)(
            h=6,
            input_size=24,
            max_steps=5,
            batch_size=4,
            random_seed=1,
            callbacks=[losses],
            **quiet(tmp_path),
        )
        forecast = package.NeuralForecast(models=[net], freq="h")
        table = frame(pandas).drop(columns="step")
        forecast.fit(table, val_size=0)
        predicted = forecast.predict()[model].to_numpy()
        return [*losses.losses, torch.from_numpy(predicted)]

    check(f"neuralforecast {model}", run, names=True)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("model", ["RNNModel", "BlockRNNModel"])
def test_darts(tmp_path: Path, model: str, cell: str) -> None:
    darts = pytest.importorskip("darts", reason="darts is not installed")
    models = pytest.importorskip("darts.models", reason="darts is not installed")
    lightning = pytest.importorskip("pytorch_lightning", reason="it is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        losses = losses_callback(lightning)
        more: dict[str, Any] = {"training_length": 30}
        if model == "BlockRNNModel":
            more = {"output_chunk_length": 6, "n_rnn_layers": 2}
        net = getattr(models, model)(
            model=cell,
            input_chunk_length=24,
            hidden_dim=20,
            n_epochs=1,
            batch_size=32,
            random_state=1,
            save_checkpoints=False,
            work_dir=str(tmp_path),
            pl_trainer_kwargs=quiet(tmp_path) | {"callbacks": [losses]},
            **more,
        )
        series = [darts.TimeSeries.from_values(row) for row in values()]
        forecasts = net.fit(series, verbose=False).predict(6, series=series, verbose=False)
        return [*losses.losses, torch.from_numpy(np.stack([f.values() for f in forecasts]))]

    check(f"darts {model} {cell}", run, names=True)
