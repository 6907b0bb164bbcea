"""Several processes: data-parallel training, modules sent and forked, data loaders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

PROGRAMS = Path(__file__).parent / "programs"


def run(*command: str) -> str:
    """What a program prints; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "default"}
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
def test_data_parallel() -> None:
    """DDP and FSDP2 on two processes: the losses of one process, on the fused kernels."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run(*launcher, str(PROGRAMS / "data_parallel.py"))
    for way in ("DDP", "DDP, gradients in buckets", "FSDP2"):
        for rank in range(2):
            assert f"{way} agrees on rank {rank}" in printed


@pytest.mark.parametrize("part", ["spawn", "fork", "hogwild", "loader"])
def test_processes(part: str) -> None:
    """What each part is stands in the program."""
    if part in ("fork", "hogwild") and torch.cuda.is_available():
        pytest.skip("beside CUDA devices torch has no backward pass in forked processes")
    assert f"{part} done" in run(str(PROGRAMS / "processes.py"), part)
