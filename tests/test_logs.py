"""What is printed: tables beside a progress bar, cells that are too long, lines of life."""

import io
import sys

import pytest
import rich
from rich.console import Console

from loralight import logs


@pytest.mark.parametrize(("is_terminal", "by_the_bar"), [(True, True), (False, False)])
def test_a_terminal_s_tables_go_by_the_console_that_draws_the_bar(
    is_terminal: bool, by_the_bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another console knows nothing of the bar, which then overwrites a table's first line."""
    shared, stdout = io.StringIO(), io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=shared, force_terminal=True))
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", stdout)
    logs.show("a line")
    assert ("a line" in shared.getvalue(), "a line" in stdout.getvalue()) == (by_the_bar, not by_the_bar)


def test_of_a_long_text_a_cell_has_beginning_and_end() -> None:
    text = "user: " + "so " * 200 + "what is it?"
    assert len(logs.cut(text)) <= 240
    assert logs.cut(text).startswith("user: so so") and logs.cut(text).endswith("so what is it?")
    assert logs.cut("a short one") == "a short one"


def test_a_long_work_tells_how_much_is_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="loralight"):
        assert [*logs.telling("abc", "letters", 3, every=0)] == ["a", "b", "c"]
        assert caplog.messages == ["letters: 0 of 3", "letters: 1 of 3", "letters: 2 of 3"]
        caplog.clear()
        assert [*logs.telling("abc", "letters", 3, every=1000)] == ["a", "b", "c"] and caplog.messages == []
