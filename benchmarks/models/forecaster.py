"""A forecaster: LSTM layers over the past of many series, and a future drawn step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from models.subject import Subject


@dataclass(frozen=True)
class Sizes:
    """Hourly series: the past of a week and a day to come."""

    batch: int
    past: int
    future: int
    samples: int
    covariates: int
    embedding: int
    hidden: int
    layers: int


FULL = Sizes(
    batch=32,
    past=168,
    future=24,
    samples=100,
    covariates=4,
    embedding=20,
    hidden=40,
    layers=3,
)
TINY = Sizes(batch=3, past=6, future=3, samples=4, covariates=2, embedding=3, hidden=5, layers=2)


class DeepAR(nn.Module):
    """Salinas, Flunkert and Gasthaus, "DeepAR: Probabilistic Forecasting with Autoregressive
    Recurrent Networks", 2017, with a Gaussian likelihood.

    Each step sees the value before it, covariates and an embedding of the series.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.batch, sizes.embedding)
        self.lstm = nn.LSTM(
            1 + sizes.covariates + sizes.embedding,
            sizes.hidden,
            num_layers=sizes.layers,
            batch_first=True,
        )
        self.mean = nn.Linear(sizes.hidden, 1)
        self.deviation = nn.Linear(sizes.hidden, 1)

    def forward(
        self, before: Tensor, covariates: Tensor, series: Tensor, state: Any = None
    ) -> tuple[Normal, Any]:
        """The distribution of the values [B, T] that come after `before` [B, T], and the state
        after them; covariates [B, T, C], series [B]."""
        which = self.embedding(series).unsqueeze(1).expand(-1, before.shape[1], -1)
        hidden, state = self.lstm(torch.cat([before.unsqueeze(-1), covariates, which], -1), state)
        mean, deviation = self.mean(hidden), softplus(self.deviation(hidden))
        return Normal(mean.squeeze(-1), deviation.squeeze(-1), validate_args=False), state

    def sample(
        self,
        past: Tensor,
        covariates: Tensor,
        series: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Futures [B * samples, F] after past [B, P]; covariates [B, P + F, C], standard normal
        noise [F, B * samples, 1]."""
        samples = noise.shape[1] // past.shape[0]
        seen = past.shape[1] - 1
        _, state = self(past[:, :-1], covariates[:, :seen], series)
        state = tuple(part.repeat_interleave(samples, 1) for part in state)
        value = past[:, -1:].repeat_interleave(samples, 0)
        covariates = covariates[:, seen:].repeat_interleave(samples, 0)
        series = series.repeat_interleave(samples)
        drawn: list[Tensor] = []
        for step, draw in enumerate(noise):
            law, state = self(value, covariates[:, step : step + 1], series, state)
            value = law.mean + law.stddev * draw
            drawn.append(value)
        return torch.cat(drawn, 1)


class Forecast(Subject):
    """Training sees past and future as one sequence; inference draws many futures at once."""

    net: DeepAR

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            DeepAR(sizes),
            f"{sizes.layers} LSTM H{sizes.hidden}, T{sizes.past}, then {sizes.future} steps of "
            f"{sizes.batch} x {sizes.samples} rows",
        )
        length = sizes.past + sizes.future
        hours = torch.arange(length).expand(sizes.batch, -1) + torch.arange(sizes.batch)[:, None]
        day = torch.sin(hours * (2 * math.pi / 24))
        values = day + 0.1 * torch.randn(sizes.batch, length)
        # Around 1, the scale that the paper brings every series to.
        self.values = values / values.abs().mean(1, keepdim=True)
        self.covariates = torch.randn(sizes.batch, length - 1, sizes.covariates)
        self.series = torch.arange(sizes.batch)
        self.past = sizes.past
        self.noise = torch.randn(sizes.future, sizes.batch * sizes.samples, 1)

    def predict(self) -> tuple[Tensor, ...]:
        past = self.values[:, : self.past]
        return (self.net.sample(past, self.covariates, self.series, self.noise),)

    def loss(self) -> Tensor:
        law, _ = self.net(self.values[:, :-1], self.covariates, self.series)
        return -law.log_prob(self.values[:, 1:]).mean()
