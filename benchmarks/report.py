"""What every report of a benchmark tells: where and when it was measured, and its figures."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from workloads import machine


def announce(**versions: str) -> dict[str, str]:
    """Prints and returns the machine, the versions and the date."""
    about = machine() | versions | {"date": datetime.date.today().isoformat()}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    return about


def write_figures(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"Figures: {path}")
