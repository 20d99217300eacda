"""The scripts under `benchmarks/` measure nothing here, but what they import is there."""

import runpy
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda script: script.stem)
def test_a_benchmark_finds_what_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    found = runpy.run_path(str(script))
    assert "main" in found or script.stem == "side_by_side"


def test_a_start_without_a_goal_is_neither_reached_nor_short(capsys: pytest.CaptureFixture[str]) -> None:
    """The first step with the linear probe, which is measured because the default settings ask for it."""
    startup = runpy.run_path(str(FOLDER / "startup.py"))
    startup["add_rows"].__globals__["seconds"] = lambda line, folder: (3.0, 9.0)
    table = Table(*"abcdefg")
    startup["add_rows"](table, {"a": ([], 10.0), "b": ([], 8.0), "c": ([], None)}, 1, "")
    Console(width=100).print(table)
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "9.00" in line]
    assert [[cell.strip() for cell in row[-2:]] for row in rows] == [
        ["10.00", "reached"],
        ["8.00", "short"],
        ["none", ""],
    ]
