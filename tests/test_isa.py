"""Every instruction set that the machine has, forced, on the table of cases."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import fused_rnn
from cases import (
    KINDS,
    LAYER_CASES,
    TOLERANCE,
    Case,
    assert_close,
    check_layer,
    flatten,
    run_with_grads,
)
from fused_rnn import _C
from test_cells import SHAPES, draw, hx_of
from test_cells import make as make_cell

ALL = ("baseline", "avx2", "avx512")
AVAILABLE = _C.config()["isa_available"]


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(None)


every_isa = pytest.mark.parametrize("isa", AVAILABLE, indirect=True)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layer(case: Case, dtype: torch.dtype, isa: str) -> None:
    assert _C.config()["isa_active"] == isa
    check_layer(case, dtype, "torch")


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cell(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    B, I, H = shape  # noqa: E741
    ours = make_cell(kind, fused_rnn, I, H, dtype=dtype)
    theirs = make_cell(kind, torch.nn, I, H, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x, states = draw(kind, B, I, H, dtype)
    actual, expected = (
        run_with_grads(
            lambda x, s, cell=cell: cell(x, hx_of(kind, s)), x, states, list(cell.parameters())
        )
        for cell in (ours, theirs)
    )
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"{isa} {index}", one, other, TOLERANCE[dtype])


@every_isa
@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_a_row_give_the_same_bits(
    kind: str, frozen: bool, dtype: torch.dtype, isa: str
) -> None:
    """Though, where a call packs none of the weights of its gates, every other one goes through the
    units backwards: here all of frozen layers, and others of few rows or large weights."""
    for batch, inputs, hidden in [
        (1, 9, 7),
        (1, 65, 48),
        (1, 40, 100),
        (1, 30, 333),
        (2, 65, 200),
        (3, 33, 144),
        (8, 20, 112),
        (16, 150, 150),
        (17, 12, 144),
        (32, 260, 260),
        (40, 64, 80),
    ]:
        for proj in (0, 30) if kind == "LSTM" and hidden > 30 else (0,):
            layer = Case(kind, 1, batch, inputs, hidden, P=proj, bidirectional=batch == 8).module(
                fused_rnn, dtype
            )
            if frozen:
                fused_rnn.freeze(layer)
            x = torch.randn(1, batch, inputs, dtype=dtype)
            with torch.no_grad():
                _, states = layer(x)
                first, *others = [flatten(layer(x, states)) for _ in range(3)]
            for other in others:
                assert all(map(torch.equal, first, other)), (
                    f"{isa} B{batch} I{inputs} H{hidden} P{proj}"
                )


@pytest.mark.parametrize("case", LAYER_CASES[::7], ids=str)
def test_sets_agree_with_each_other(case: Case) -> None:
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    results = []
    try:
        for name in AVAILABLE:
            _C.set_isa(name)
            results.append(
                run_with_grads(
                    lambda x, s: layer(case.pack(x), case.hx_of(s)),
                    x,
                    states,
                    list(layer.parameters()),
                )
            )
    finally:
        _C.set_isa(None)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_close("result", one, two, 1e-11)


def test_baseline_is_everywhere() -> None:
    config = _C.config()
    assert "baseline" in config["isa_available"]
    assert set(config["isa_available"]) <= set(config["isa_built"]) <= set(ALL)
    assert config["isa_active"] in config["isa_available"]


@pytest.mark.parametrize("name", ["sse9", "AVX2", *(set(ALL) - set(AVAILABLE))])
def test_forcing_what_is_not_there(name: str) -> None:
    before = _C.config()["isa_active"]
    with pytest.raises(RuntimeError):
        _C.set_isa(name)
    assert _C.config()["isa_active"] == before


def test_explanation_and_configuration_follow(capsys: pytest.CaptureFixture[str]) -> None:
    layer, x = fused_rnn.GRU(3, 4), torch.randn(2, 1, 3)
    try:
        for name in AVAILABLE:
            _C.set_isa(name)
            assert f"the {name} kernels" in fused_rnn.explain(layer, x)
            fused_rnn.show_config()
            assert f"{name} (" in capsys.readouterr().out
    finally:
        _C.set_isa(None)


def run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSED_RNN_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", AVAILABLE)
def test_environment_forces_one(name: str) -> None:
    result = run("from fused_rnn import _C; print(_C.config()['isa_active'])", name)
    assert result.stdout.strip() == name, result.stderr


def test_environment_cannot_force_nonsense() -> None:
    result = run("import fused_rnn", "sse9")
    assert result.returncode != 0
    assert "sse9" in result.stderr
