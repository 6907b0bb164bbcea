"""Agents with a memory: sb3-contrib and torchrl."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from before_and_after import Prepare, check, train


def test_sb3_recurrent_ppo() -> None:
    """Rollouts, one step at a time, and training on padded sequences with resets: the episodes,
    the losses and the policy that comes of them."""
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        agent = contrib.RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=64,
            batch_size=32,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 64},
        )
        prepare(agent.policy)
        agent.learn(256)
        lengths = [float(episode["l"]) for episode in agent.ep_info_buffer]
        losses = [agent.logger.name_to_value[f"train/{name}"] for name in ("loss", "value_loss")]
        chosen = [agent.policy.state_dict()[name] for name in sorted(agent.policy.state_dict())]
        return [torch.tensor(lengths), torch.tensor(losses).float(), *chosen]

    check("sb3-contrib RecurrentPPO", run)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_modules(kind: str) -> None:
    """Trajectories that begin anew at several steps are cut, padded and packed."""
    modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(
            getattr(modules, kind + "Module")(
                input_size=8,
                hidden_size=32,
                num_layers=2,
                in_key="seen",
                out_key="felt",
                recurrent_backend="pad",
                default_recurrent_mode=True,
            )
        )
        begins = torch.rand(6, 40, 1) < 0.1
        names = (
            ["recurrent_state_h", "recurrent_state_c"] if kind == "LSTM" else ["recurrent_state"]
        )
        states = {name: torch.zeros(6, 40, 2, 32) for name in names}
        data: Any = tensordict.TensorDict(
            {"seen": torch.randn(6, 40, 8), "is_init": begins, **states}, [6, 40]
        )
        losses = train(net, lambda: net(data.clone())["felt"].square().mean())
        return [*losses, net(data.clone())["felt"]]

    check(f"torchrl {kind}Module", run)
