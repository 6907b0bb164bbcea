"""Graphs: torch_geometric."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from before_and_after import Prepare, check, train


def graph() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes, edges, features of the edges, and which of 8 graphs each node is in."""
    x, edges = torch.randn(120, 16), torch.randint(120, (2, 500))
    return x, edges, torch.randn(500, 5), torch.arange(120) // 15


@pytest.mark.parametrize("kind", ["LSTMAggregation", "GRUAggregation", "Set2Set"])
def test_aggregations(kind: str) -> None:
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, _, _, of_graph = graph()
        last = {"processing_steps": 4} if kind == "Set2Set" else {"out_channels": 24}
        net = prepare(getattr(nn, kind)(16, **last))
        return [*train(net, lambda: net(x, of_graph).square().mean()), net(x, of_graph)]

    check(f"torch_geometric {kind}", run)


def test_gated_graph_convolution() -> None:
    """A GRU cell whose rows are the nodes."""
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, edges, _, _ = graph()
        net = prepare(nn.GatedGraphConv(32, num_layers=4))
        return [*train(net, lambda: net(x, edges).square().mean()), net(x, edges)]

    check("torch_geometric GatedGraphConv", run)


def test_attentive_fingerprints() -> None:
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(nn.AttentiveFP(16, 64, 3, edge_dim=5, num_layers=3, num_timesteps=3))
        call = graph()
        return [*train(net, lambda: net(*call).square().mean()), net(*call)]

    check("torch_geometric AttentiveFP", run)


def test_jumping_knowledge() -> None:
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        x, edges, _, _ = graph()
        net = prepare(nn.GraphSAGE(16, 32, num_layers=3, out_channels=7, jk="lstm"))
        return [*train(net, lambda: net(x, edges).square().mean()), net(x, edges)]

    check("torch_geometric GraphSAGE, LSTM over layers", run)
