"""A pytest plugin: another package's own tests, with torch.nn's names standing for fused_rnn's.

PYTHONPATH=tests:tests/clients pytest -p everywhere --pyargs opacus.tests.dp_layers
"""

import functools
from collections import Counter
from typing import Any

import pytest

import fused_rnn
from before_and_after import NAMES, swapped_names

CALLS: Counter[str] = Counter()


def count_calls(kind: Any) -> None:
    forward = kind.forward

    @functools.wraps(forward)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        CALLS[kind.__name__] += 1
        return forward(self, *args, **kwargs)

    kind.forward = counted


for _name in NAMES:
    count_calls(getattr(fused_rnn, _name))
# Held, because a context manager that is let go of ends.
_SWAP = swapped_names()
_SWAP.__enter__()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    calls = ", ".join(f"{name} {count}" for name, count in CALLS.items()) or "none"
    terminalreporter.write_line(f"calls of fused_rnn's modules: {calls}")
