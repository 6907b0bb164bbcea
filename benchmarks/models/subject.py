"""What whole_models.py runs: a net together with data and an optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Subject:
    """A net, made-up data for it, and what its users do with the two.

    All that a subject draws at random comes from torch's default generator when it is built and
    from generators of its own later, so that two that are built from one seed do the same. None of
    the nets has dropout, for the same reason.

    Attributes:
        net: what `fused_rnn.accelerate` is called with.
        about: the sizes, in a few words.
    """

    def __init__(self, net: nn.Module, about: str, learning_rate: float = 1e-4) -> None:
        self.net = net
        self.about = about
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)

    def predict(self) -> tuple[Tensor, ...]:
        """What the net is for; called in eval mode and without gradients."""
        raise NotImplementedError

    def loss(self) -> Tensor:
        """The loss of one batch; called in training mode."""
        raise NotImplementedError

    def infer(self) -> tuple[Tensor, ...]:
        """`predict` in its surroundings: one run of inference."""
        if self.net.training:
            self.net.eval()
        with torch.no_grad():
            return self.predict()

    def train(self) -> tuple[Tensor, ...]:
        """One step of training: forward, loss, backward and optimizer. Returns the loss."""
        if not self.net.training:
            self.net.train()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return (loss.detach(),)


def spread(longest: int, count: int) -> Tensor:
    """`count` lengths from `longest` down to half of it."""
    return torch.linspace(longest, max(1, longest // 2), count).long()
