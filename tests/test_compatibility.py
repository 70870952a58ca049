"""docs/compatibility.md: every row says what happens and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ("works", "refused", "warns")
HEADER = ["what", "result", "test"]


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the cells of every row of the tables, headers included and rulers left out, by section."""
    found: dict[str, list[list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line.startswith("|") and not re.fullmatch(r"[|:\- ]+", line):
            cells = re.split(r"(?<!\\)\|", line.strip())
            found.setdefault(section, []).append([cell.strip() for cell in cells[1:-1]])
    return found


def faults(row: list[str], root: Path = ROOT) -> list[str]:
    """Return what is wrong with a row: cells, result, or a test that does not exist."""
    if len(row) != 3 or not all(row):
        return [f"three cells that say something are needed, found {row}"]
    what, result, tests = row
    wrong = [] if result.startswith(RESULTS) else [f"{what}: result is {result!r}; it begins with one of {RESULTS}"]
    for node in re.split(r"<br\s*/?>", tests):
        path, _, name = node.strip().partition("::")
        file = root / path
        if not re.fullmatch(r"tests/\S+\.py", path) or not file.is_file():
            wrong.append(f"{what}: there is no file {path!r}")
        elif name not in defined(file):
            wrong.append(f"{what}: {path} defines no test {name!r}")
    return wrong


def defined(file: Path) -> set[str]:
    """Return the names of the test functions at the top level of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


TABLES = tables(PAGE.read_text(encoding="utf-8"))


def test_the_page_has_a_table_for_every_topic():
    sections = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    topics = [section for section in sections if section in TABLES]
    assert len(topics) >= 7
    for topic in topics:
        header, *rows = TABLES[topic]
        assert header == HEADER, topic
        names = [row[0] for row in rows]
        assert len(set(names)) == len(names), f"{topic}: a row is there twice"


@pytest.mark.parametrize("topic", TABLES)
def test_every_row_has_a_result_and_a_test_that_exists(topic):
    assert [fault for row in TABLES[topic][1:] for fault in faults(row)] == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| a | works | tests/test_compatibility.py::test_gone |", "defines no test 'test_gone'"),
        ("| a | works | tests/test_compatibility.py |", "defines no test ''"),
        ("| a | works | tests/test_compatibility.py::tables |", "defines no test 'tables'"),
        ("| a | works | tests/gone.py::test_a |", "no file 'tests/gone.py'"),
        ("| a | works | by hand |", "no file 'by hand'"),
        ("| a | it depends | tests/test_compatibility.py::test_rows_that_lie_are_found |", "result is 'it depends'"),
        ("| a | | tests/test_compatibility.py::test_rows_that_lie_are_found |", "three cells"),
        ("| a | works | |", "three cells"),
        (
            "| a | works | tests/test_compatibility.py::test_rows_that_lie_are_found<br>tests/x.py::test_x |",
            "tests/x.py",
        ),
    ],
)
def test_rows_that_lie_are_found(row, fault):
    (cells,) = tables(row)[""]
    (found,) = faults(cells)
    assert fault in found


def test_a_row_may_hold_an_escaped_bar_and_name_several_tests():
    here = "tests/test_compatibility.py::"
    tests = f"{here}test_rows_that_lie_are_found<br>{here}test_the_page_has_a_table_for_every_topic"
    text = f"| `a \\| b` | refused: says why | {tests} |"
    (cells,) = tables(text)[""]
    assert cells[0] == "`a \\| b`" and faults(cells) == []
