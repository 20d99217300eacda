"""The codes of errors: each is explained by a page, a docstring or its own message."""

import re
from pathlib import Path

import pytest

from loralight.config import error_codes
from loralight.config.error_codes import codes, messages, page, passages, reasons

CODES = codes()


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str) -> None:
    assert passages(code) or reasons(code, CODES[code]) or messages(code, CODES[code])


def test_the_page_on_debugging_names_codes_that_there_are() -> None:
    named = set(re.findall(r"`(E-[A-Z0-9-]+)`", page()))
    assert named and named <= CODES.keys()


def test_a_row_is_told_with_the_names_of_its_columns_and_a_paragraph_as_a_whole() -> None:
    ((heading, text),) = passages("E-CHAT")
    assert heading == "A model or an adapter is refused"
    assert text.startswith("cause: a chat template does not end") and "remedy: `data.chat_template=`" in text
    ((heading, text),) = passages("E-DISK")
    assert heading.startswith("A full disk") and text.endswith("nothing is written in its place.")


def test_a_code_is_not_taken_for_a_longer_one() -> None:
    assert not [text for _, text in passages("E-RESUME") if "E-RESUME" not in text.replace("E-RESUME-ORDER", "")]


def test_a_stranger_s_errors_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd" / "conf").mkdir(parents=True)
    (tmp_path / "odd" / "__init__.py").write_text(
        'def check(value):\n    """Check it.\n\n    Raises:\n        InputError: it is odd (``E-ODD``), or '
        'nothing (``E-NONE``).\n    """\n    raise InputError("E-ODD", f"task.value={value}: give an even one")\n'
    )
    monkeypatch.setenv("LORALIGHT_PLUGINS", str(tmp_path / "odd"))
    assert reasons("E-ODD", codes()["E-ODD"]) == [("it is odd", "__init__: check")]
    assert messages("E-ODD", codes()["E-ODD"]) == ["task.value=…: give an even one"]


def test_without_the_page_docstrings_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_codes, "PAGE", "docs/nowhere.md")
    assert page() == "" and passages("E-MEMORY") == [] and reasons("E-MEMORY", CODES["E-MEMORY"])
