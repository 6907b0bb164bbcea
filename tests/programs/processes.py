"""Modules that are sent to other processes, used in forked ones and called by data loaders.

Its argument names the part to run. A program of its own, because what forks must not have pytest's
threads.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fused_rnn

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
F64 = torch.float64


def make(name: str, H: int = 6) -> nn.Module:
    module: nn.Module = getattr(fused_rnn, name)(4, H, dtype=F64)
    return module


def call(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """The output of a layer for x [T, B, I], or of a cell after two steps."""
    results = module(x[1], module(x[0])) if name.endswith("Cell") else module(x)
    return results if isinstance(results, Tensor) else results[0]


def results(models: dict[str, nn.Module], x: Tensor) -> list[Tensor]:
    """Outputs and gradients of each."""
    found = []
    for name, model in models.items():
        output = call(name, model, x)
        grads = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        found += [output.detach(), *grads]
    return found


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max()


def by_torch(models: dict[str, nn.Module], x: Tensor) -> list[Tensor]:
    """What torch.nn's modules of the same weights compute."""
    plain = {}
    for name, model in models.items():
        plain[name] = getattr(nn, name)(4, model.hidden_size, dtype=F64)
        plain[name].load_state_dict(model.state_dict())
    return results(plain, x)


def answer(models: dict[str, nn.Module], x: Tensor, sent: Any) -> None:
    torch.set_num_threads(1)
    sent.put([r.numpy() for r in results(models, x)])


def received(context: Any, models: dict[str, nn.Module], x: Tensor) -> list[Tensor]:
    """What a child of this process computes."""
    queue = context.Queue()
    child = context.Process(target=answer, args=(models, x, queue))
    child.start()
    found = [torch.from_numpy(r) for r in queue.get(timeout=240)]
    child.join()
    assert child.exitcode == 0
    return found


def spawn() -> None:
    """Modules are sent to a process that knows nothing yet."""
    models, x = {name: make(name) for name in NAMES}, torch.randn(5, 3, 4, dtype=F64)
    expected = by_torch(models, x)
    assert_all_close(received(mp.get_context("spawn"), models, x), expected)
    assert_all_close(results(models, x), expected)


def fork() -> None:
    """A child forked after threads have run uses one; its parent's go on working."""
    torch.set_num_threads(2)
    models, x = {name: make(name, 129) for name in NAMES}, torch.randn(9, 24, 4, dtype=F64)
    expected = by_torch(models, x)
    for _ in range(3):
        assert_all_close(results(models, x), expected)
        assert_all_close(received(mp.get_context("fork"), models, x), expected)
    assert torch.get_num_threads() == 2
    assert_all_close(results(models, x), expected)


def hogwild_worker(
    rank: int, models: dict[str, nn.Module], x: Tensor, before: list[Tensor], barrier: Any
) -> None:
    torch.set_num_threads(1)
    barrier.wait(120)
    for name, model in models.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            call(name, model, x).square().sum().backward()
            optimizer.step()
    barrier.wait(120)
    # Both processes compute with what both have made of the weights.
    check_moved(models, x, before)


def check_moved(models: dict[str, nn.Module], x: Tensor, before: list[Tensor]) -> None:
    found = results(models, x)
    assert_all_close(found, by_torch(models, x))
    assert all(
        (one - other).abs().max() > 1e-6 * other.abs().max()
        for one, other in zip(found, before, strict=True)
    )


def hogwild() -> None:
    """Two processes train the same shared weights; they and the parent see every step."""
    torch.set_num_threads(1)
    models = {name: make(name).share_memory() for name in NAMES}
    x = torch.randn(5, 3, 4, dtype=F64)
    before = results(models, x)
    barrier = mp.get_context("fork").Barrier(2)
    arguments = (models, x, before, barrier)
    mp.start_processes(hogwild_worker, arguments, nprocs=2, start_method="fork")
    check_moved(models, x, before)


class Features(Dataset[Tensor]):
    """Rows computed by a layer and a cell, as a frozen encoder in a data set does."""

    def __init__(self, layer: nn.Module, cell: nn.Module, data: Tensor) -> None:
        self.layer, self.cell, self.data = layer, cell, data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            output: Tensor = self.cell(self.layer(self.data[index])[0])
        return output


def loader() -> None:
    """Two workers of a data loader call the modules after their parent has."""
    torch.set_num_threads(2)
    layer, cell = fused_rnn.LSTM(4, 65, dtype=F64), fused_rnn.GRUCell(65, 5, dtype=F64)
    features = Features(layer, cell, torch.randn(12, 40, 4, dtype=F64))
    layer(torch.randn(40, 33, 4, dtype=F64))
    expected = torch.stack([features[index] for index in range(len(features))])
    batches = DataLoader(features, batch_size=3, num_workers=2)
    assert_all_close([torch.cat(list(batches))], [expected])


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (spawn, fork, hogwild, loader)
}

if __name__ == "__main__":
    torch.manual_seed(0)
    PARTS[sys.argv[1]]()
    print(f"{sys.argv[1]} done")
