"""README's table of what is supported: every row names tests, and those exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
STATES = ("fused", "right, on torch's", "right, on the reference")
ONE_LINE = re.compile(r"one line: `[^`]+`")
NODE = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows() -> list[tuple[str, str, str]]:
    """what, state and tests of each row; headings within the table are rows with `what` alone."""
    marked = re.search(
        r"<!-- support: begin -->\n(.*?)<!-- support: end -->", README.read_text(), re.DOTALL
    )
    assert marked is not None, "README.md has no table between the support markers"
    header, line, *rest = marked[1].strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["what", "state", "tests"]
    assert set(line) <= set("|-")
    found = []
    for row in rest:
        cells = [
            cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")
        ]
        assert len(cells) == 3, f"not three columns: {row}"
        found.append((cells[0], cells[1], cells[2]))
    return found


ROWS = [row for row in rows() if row[1] or row[2]]


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}


@pytest.mark.parametrize(("what", "state", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_row(what: str, state: str, tests: str) -> None:
    assert what
    assert state in STATES or ONE_LINE.fullmatch(state), f"{what}: unknown state {state!r}"
    names = tests.split(", ")
    for name in names:
        node = NODE.fullmatch(name)
        assert node is not None, f"{what}: {name} is not `test_file.py::test_function`"
        assert (TESTS / node[1]).is_file(), f"{what}: there is no {node[1]}"
        assert node[2] in functions_of(TESTS / node[1]), f"{what}: {node[1]} has no {node[2]}"
    assert len(set(names)) == len(names)


def test_rows_are_told_apart() -> None:
    whats = [what for what, _, _ in rows()]
    assert len(set(whats)) == len(whats)
    assert len(ROWS) > 20
    headings = [what for what, state, tests in rows() if not state and not tests]
    assert headings
    assert all(re.fullmatch(r"\*\*.+\*\*", heading) for heading in headings)
