"""The models of benchmarks/whole_models.py, as small as can be, before and after accelerate and
freeze."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cases import TOLERANCE
from models import MODELS
from whole_models import build_all, differences, main, recurrent_share


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", MODELS)
def test_models_infer_and_train_as_on_torch(name: str, dtype: torch.dtype) -> None:
    subjects = build_all(name, tiny=True)
    for library, package in (("fused", "fused_rnn."), ("frozen", "fused_rnn.frozen")):
        modules = list(subjects[library].net.modules())
        swapped = [m for m in modules if isinstance(m, (torch.nn.RNNBase, torch.nn.RNNCellBase))]
        assert swapped
        assert all(type(module).__module__.startswith(package) for module in swapped)
    for mode, difference in differences(subjects).items():
        assert difference <= TOLERANCE[dtype], (mode, difference)


def test_subjects_are_the_same_each_time() -> None:
    for name in MODELS:
        first, second = (build_all(name, tiny=True)["torch"] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.infer(), second.infer(), strict=True))


def test_recurrent_share_is_a_share() -> None:
    assert 0 < recurrent_share(build_all("tagger", tiny=True)["torch"]) < 1


def test_script_reports_every_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    command = f"whole_models.py --quick --model tagger --threads 1 --json {target}"
    monkeypatch.setattr(sys, "argv", command.split())
    threads = torch.get_num_threads()
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(target.read_text(encoding="utf-8"))["rows"]
    assert [(row["model"], row["mode"]) for row in rows] == [
        ("tagger", "inference"),
        ("tagger", "frozen"),
        ("tagger", "training"),
    ]
    assert all(row["torch"] > 0 and row["fused"] > 0 and row["ratio"] > 0 for row in rows)
    assert "geometric mean" in capsys.readouterr().out
