"""Results, whose memory is not from torch's allocator, are tensors like any other."""

import copy
import io
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fused_rnn
import peak_memory
from shapes import CATEGORIES, Row, Shape

HUGE_PAGE = 2 << 20


@pytest.fixture
def layer() -> fused_rnn.GRU:
    torch.manual_seed(0)
    return fused_rnn.GRU(32, 512)


@pytest.fixture
def output(layer: fused_rnn.GRU) -> Tensor:
    """3.9 MiB: not a multiple of huge pages."""
    with torch.no_grad():
        result: Tensor = layer(torch.randn(40, 50, 32))[0]
    assert result.nbytes > HUGE_PAGE
    assert result.nbytes % HUGE_PAGE != 0
    return result


def test_large_results_begin_with_a_page(layer: fused_rnn.GRU, output: Tensor) -> None:
    assert output.data_ptr() % HUGE_PAGE == 0
    layer(torch.randn(3, 2, 32))[0].sum().backward()
    weight = layer.weight_hh_l0
    assert weight.grad is not None
    assert weight.grad.nbytes > HUGE_PAGE
    assert weight.grad.data_ptr() % HUGE_PAGE == 0


def test_they_outlive_the_call_and_are_not_shared(layer: fused_rnn.GRU, output: Tensor) -> None:
    before = output.clone()
    with torch.no_grad():
        other = layer(torch.randn(40, 50, 32))[0]
    assert other.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()
    assert torch.equal(output, before)


def test_memory_that_is_free_is_used_again(layer: fused_rnn.GRU) -> None:
    x = torch.randn(40, 50, 32)
    with torch.no_grad():
        output = layer(x)[0]
        expected, first = output.clone(), output.data_ptr()
        del output
        output = layer(x)[0]
        other = layer(x)[0]
    assert output.data_ptr() == first != other.data_ptr()
    assert torch.equal(output, expected)
    assert torch.equal(other, expected)


TRAINING_STEPS = """
import resource
import torch
import fused_rnn

layer = fused_rnn.LSTM(32, 64)
x = torch.randn(50, 16, 32)

def train(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.autograd.grad(layer(x)[0], list(layer.parameters()), torch.ones(50, 16, 64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

train(20)
print(train(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc")
def test_training_again_takes_no_fresh_memory() -> None:
    """Where malloc gives every block of 128 KiB or more back to the system at once."""
    limits = {"mmap_threshold": 131072, "trim_threshold": 131072}
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in limits.items())
    done = subprocess.run(
        [sys.executable, "-c", TRAINING_STEPS],
        env={**os.environ, "GLIBC_TUNABLES": tunables},
        capture_output=True,
        text=True,
        check=True,
    )
    # The gradient that is made here has 50 pages, and the layer's results 300.
    assert int(done.stdout) < 20 * 100


INFERENCE = """
import resource
import sys
import torch
import fused_rnn

T, B, frozen = (int(argument) for argument in sys.argv[1:])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
with torch.inference_mode():
    fused_rnn.LSTM(8, 8)(torch.randn(3, 2, 8))
    layer = fused_rnn.LSTM(600, 600)
    weights = sum(parameter.nbytes for parameter in layer.parameters())
    x = torch.randn(T, B, 600)
    if frozen:
        fused_rnn.freeze(layer)
    before = peak()
    layer(x)
    print((peak() - before) / weights)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="getrusage counts in KiB on Linux")
@pytest.mark.parametrize(
    ("T", "B", "frozen", "most"), [(20, 8, False, 1.3), (1, 4, False, 0.2), (20, 8, True, 0.3)]
)
def test_inference_needs_no_more_than_a_copy_of_the_weights(
    T: int, B: int, frozen: bool, most: float
) -> None:
    """None where they are read in place, or have been packed before; results come on top."""
    done = subprocess.run(
        [sys.executable, "-c", INFERENCE, str(T), str(B), str(int(frozen))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < most


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_training_step_needs_no_more_than_torchs(cell: str) -> None:
    shape = Shape(128, 100, 32, "a medium model")
    result = peak_memory.measure(Row(CATEGORIES["training"], cell, shape), threads=1)
    assert 0 < result.fused < result.torch


def test_they_can_be_resized(output: Tensor) -> None:
    before = output.clone()
    more = (2 * output.size(0), *output.shape[1:])
    output.resize_(more)
    assert torch.equal(output[: before.size(0)], before)
    output.fill_(1)
    storage = output.untyped_storage()
    storage.resize_(0)
    assert storage.nbytes() == 0
    storage.resize_(before.nbytes)
    output.resize_(before.shape).copy_(before)
    assert torch.equal(output, before)
    output.resize_(3).fill_(2)
    assert output.tolist() == [2, 2, 2]


def test_small_results_do_not_push_out_large_ones(layer: fused_rnn.GRU) -> None:
    cell = fused_rnn.GRUCell(64, 64)
    x, small = torch.randn(40, 50, 32), torch.randn(32, 64)
    with torch.no_grad():
        output = layer(x)[0]
        first = output.data_ptr()
        del output
        results = [cell(small) for _ in range(300)]
        del results
        output = layer(x)[0]
    assert output.data_ptr() == first


def test_they_can_be_cloned_lazily(output: Tensor) -> None:
    before = output.clone()
    lazy = torch._lazy_clone(output)
    lazier = torch._lazy_clone(output)
    lazy.zero_()
    assert torch.equal(output, before)
    output.fill_(1)
    assert torch.equal(lazier, before)
    assert lazy.count_nonzero() == 0


def test_they_can_be_copied_saved_and_shared(output: Tensor) -> None:
    before = output.clone()
    assert torch.equal(copy.deepcopy(output), before)
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    assert torch.equal(torch.load(file), before)
    array = output.numpy()
    assert np.array_equal(array, before.numpy())
    assert torch.equal(torch.from_dlpack(output), before)
    output.share_memory_()
    assert output.is_shared()
    assert torch.equal(output, before)


def test_the_profiler_sees_them(layer: fused_rnn.GRU) -> None:
    x = torch.randn(40, 50, 32)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = layer(x)[0]
        nbytes = output.nbytes
        del output
    changes = [e.cpu_memory_usage for e in seen.events() if e.name == "[memory]"]
    assert -nbytes in changes
    assert max(e.cpu_memory_usage for e in seen.events()) >= nbytes


OUT_OF_MEMORY = """
import resource
import torch
import fused_rnn

layer = fused_rnn.GRU(1, 512)
x = torch.zeros(1000, 1000, 1)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (1 << 30), resource.RLIM_INFINITY))
with torch.no_grad():
    try:
        layer(x)
    except RuntimeError as error:
        print(error)
    layer(x[:10])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_little_memory_is_torchs_error() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DefaultCPUAllocator: " in done.stdout
    assert "memory: you tried to allocate 2048000000 bytes" in done.stdout
