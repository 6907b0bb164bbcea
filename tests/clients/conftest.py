"""Settings of the tests with other packages, and the table of their times."""

from pathlib import Path

import pytest

from before_and_after import TIMINGS

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.clients)
            # Other packages' warnings are theirs to mend.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TIMINGS:
        terminalreporter.section("seconds of one run, rough")
        for timing in TIMINGS:
            ratio = timing.torch / timing.fused
            terminalreporter.write_line(
                f"{timing.name:<44} torch {timing.torch:8.3f}  fused {timing.fused:8.3f}  "
                f"{ratio:5.2f}x"
            )
