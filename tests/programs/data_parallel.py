"""Run by torchrun: a model trained by DDP and by FSDP2 has the losses of one process.

Every rank trains the whole batch by itself first, then its share of the batch together with the
others.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

STEPS = 5
ROWS = 6


class Model(nn.Module):
    """Layers on dense and packed input, and a cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(4, 8, num_layers=2, bidirectional=True)
        self.gru = fused_rnn.GRU(16, 8)
        self.cell = fused_rnn.LSTMCell(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        rows = x.shape[1]
        packed, _ = self.gru(pack_padded_sequence(x, [len(x)] + [len(x) - 1] * (rows - 1)))
        hx = None
        for step in packed.data.split(packed.batch_sizes.tolist())[:3]:
            hx = self.cell(step, hx)
        assert hx is not None
        return self.head(hx[0])


def made(prepare: Callable[[Model], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return prepare(Model().double())


def losses(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def kernels_of(model: nn.Module, x: Tensor) -> set[str]:
    """The package's operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    return {event.name for event in profile.events() if event.name.startswith("fused_rnn::")}


def sharded(model: Model) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (model.lstm, model.gru, model.cell):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, ROWS * world, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(ROWS, world, 1, generator=generator, dtype=torch.float64)
    # The first row of each share is the longest, so the whole batch is its shares one by one.
    shares = x.chunk(world, 1)

    alone = made(lambda model: model)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    expected = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        each = [
            nn.functional.mse_loss(alone(share), y[:, index]) for index, share in enumerate(shares)
        ]
        torch.stack(each).mean().backward()
        optimizer.step()
        expected.append([loss.item() for loss in each])
    assert expected[-1][0] < expected[0][0]
    fused = kernels_of(alone, x)
    assert fused

    ways: dict[str, Callable[[Model], nn.Module]] = {
        "DDP": DistributedDataParallel,
        "DDP, gradients in buckets": lambda model: DistributedDataParallel(
            model, gradient_as_bucket_view=True
        ),
        "FSDP2": sharded,
    }
    for name, prepare in ways.items():
        model = made(prepare)
        found = losses(model, shares[rank], y[:, rank])
        for step, loss in enumerate(found):
            other = expected[step][rank]
            assert abs(loss - other) <= 1e-10 * abs(other), (name, step, loss, other)
        assert kernels_of(model, shares[rank]) == fused, name
        print(f"{name} agrees on rank {rank}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
