"""An agent with a memory: an LSTM cell that steps with many environments at once, trained through
time on what it lived through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from models.subject import Subject

DISCOUNT = 0.99
TRACE = 0.95
CLIP = 0.2
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sizes:
    environments: int
    steps: int
    observed: int
    hidden: int
    actions: int


FULL = Sizes(environments=16, steps=128, observed=32, hidden=128, actions=6)
TINY = Sizes(environments=3, steps=9, observed=7, hidden=5, actions=3)


class Recall:
    """Environments in which the first observation of an episode holds a cue, the others are noise,
    and the right action at the end is the cue. An episode ends at each step with a chance of 1/16,
    and the next one begins."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.sizes = sizes
        self.generator = torch.Generator().manual_seed(seed)
        self.cue = self._draw_cues()

    def _draw_cues(self) -> Tensor:
        count = (self.sizes.environments,)
        return torch.randint(self.sizes.actions, count, generator=self.generator)

    def observe(self, first: Tensor) -> Tensor:
        """Observations [B, observed]; first [B, 1] is 1 where an episode begins."""
        shape = (self.sizes.environments, self.sizes.observed)
        noise = torch.randn(shape, generator=self.generator)
        return torch.where(first > 0, torch.eye(self.sizes.observed)[self.cue], noise)

    def act(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards [B], and [B, 1] that is 1 where the next episode begins."""
        count = self.sizes.environments
        ends = torch.rand(count, generator=self.generator) < 1 / 16
        rewards = (ends & (actions == self.cue)).to(torch.get_default_dtype())
        self.cue = torch.where(ends, self._draw_cues(), self.cue)
        return rewards, ends.to(rewards.dtype).unsqueeze(1)


class ActorCritic(nn.Module):
    """Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016: policy and value
    on one LSTM cell, whose state starts anew with every episode."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.hidden = sizes.hidden
        self.body = nn.Sequential(nn.Linear(sizes.observed, sizes.hidden), nn.Tanh())
        self.core = nn.LSTMCell(sizes.hidden, sizes.hidden)
        self.policy = nn.Linear(sizes.hidden, sizes.actions)
        self.value = nn.Linear(sizes.hidden, 1)

    def start(self, rows: int) -> State:
        return torch.zeros(rows, self.hidden), torch.zeros(rows, self.hidden)

    def forward(self, seen: Tensor, first: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Scores of the actions [B, actions], values [B] and the next state."""
        keep = 1 - first
        state = self.core(self.body(seen), (state[0] * keep, state[1] * keep))
        return self.policy(state[0]), self.value(state[0]).squeeze(-1), state


@dataclass(frozen=True)
class Rollout:
    """What happened in T steps of B environments, each [T, B] or [T, B, ...]."""

    seen: Tensor
    first: Tensor
    scores: Tensor
    values: Tensor
    actions: Tensor
    rewards: Tensor

    def advantages(self) -> Tensor:
        """Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
        Estimation", 2015; the rewards after the last step are taken to be 0."""
        result = torch.zeros_like(self.values)
        later = torch.zeros_like(self.values[0])
        value = later
        goes_on = later
        for step in reversed(range(len(self.values))):
            error = self.rewards[step] + DISCOUNT * goes_on * value - self.values[step]
            later = result[step] = error + DISCOUNT * TRACE * goes_on * later
            value = self.values[step]
            goes_on = 1 - self.first[step].squeeze(-1)
        return result


class Agent(Subject):
    """Inference lives through T steps; training is one update on such T steps, by Schulman et al.,
    "Proximal Policy Optimization Algorithms", 2017."""

    net: ActorCritic

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            ActorCritic(sizes),
            f"LSTMCell H{sizes.hidden}, {sizes.steps} steps, B{sizes.environments}",
        )
        self.sizes = sizes
        with torch.no_grad():
            self.lived = self.live()
        self.gains = self.lived.advantages()
        self.returns = self.gains + self.lived.values
        law = Categorical(logits=self.lived.scores, validate_args=False)
        self.chances = law.log_prob(self.lived.actions)

    def live(self) -> Rollout:
        """Steps through new environments, always the same ones."""
        world = Recall(self.sizes, seed=1)
        rows = self.sizes.environments
        state = self.net.start(rows)
        first = torch.ones(rows, 1)
        record: list[tuple[Tensor, ...]] = []
        for _ in range(self.sizes.steps):
            seen = world.observe(first)
            scores, values, state = self.net(seen, first, state)
            # The largest of the scores with Gumbel noise is a draw by their softmax.
            uniform = torch.rand(scores.shape, generator=world.generator)
            actions = (scores - (-uniform.log()).log()).argmax(-1)
            rewards, begins = world.act(actions)
            record.append((seen, first, scores, values, actions, rewards))
            first = begins
        return Rollout(*(torch.stack(column) for column in zip(*record, strict=True)))

    def predict(self) -> tuple[Tensor, ...]:
        lived = self.live()
        return lived.scores, lived.values

    def loss(self) -> Tensor:
        state = self.net.start(self.sizes.environments)
        all_scores: list[Tensor] = []
        all_values: list[Tensor] = []
        for seen, first in zip(self.lived.seen, self.lived.first, strict=True):
            scores, values, state = self.net(seen, first, state)
            all_scores.append(scores)
            all_values.append(values)
        law = Categorical(logits=torch.stack(all_scores), validate_args=False)
        ratio = (law.log_prob(self.lived.actions) - self.chances).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        policy = -torch.minimum(ratio * self.gains, clipped * self.gains).mean()
        value = (torch.stack(all_values) - self.returns).square().mean()
        return policy + VALUE_WEIGHT * value - ENTROPY_WEIGHT * law.entropy().mean()
