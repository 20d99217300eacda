"""Kept answers of a stranger's folder are data: damaged ones are left out by name, and no word of theirs is HTML."""

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loralight.errors import InputError
from loralight.reports.answers import read_answers
from loralight.reports.runs import read_run
from loralight.training.answers_file import FILE, MOST_BYTES

from .kept import compared, make_run, page_of

HEAD = {"split": "test", "kind": "label", "labels": ["bad", "good"], "rows": 2, "digest": "abc"}
LINE = {"row": 0, "given": "bad", "right": "good"}


def other(head: object = HEAD, *lines: object) -> Callable[[Path], object]:
    """Other content of the file."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in (head, *lines)]
    return lambda file: file.write_text("\n".join(texts))


def linked(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "bytes": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "cut off": other(HEAD, '{"row": 0, "giv'),
    "a list": other([1, 2]),
    "a line that is a list": other(HEAD, [1]),
    "bottomless": other("{" * 100_000),
    "bottomless lists": other(HEAD, "[" * 100_000),
    "no number": other(HEAD, '{"row": NaN}'),
    "a key twice": other(HEAD, '{"row": 0, "row": 1, "given": "bad", "right": "good"}'),
    "a target": other({**HEAD, "_target_": "os.system"}),
    "too large": lambda file: os.truncate(file, MOST_BYTES + 1),
    "a link": linked,
    "a pipe": pipe,
    "another kind": other({**HEAD, "kind": "__class__"}),
    "a kind that is a list": other({**HEAD, "kind": ["label"]}),
    "a split that is a path": other({**HEAD, "split": "../test"}),
    "other rows": other({**HEAD, "digest": "other"}, LINE),
    "labels that are numbers": other({**HEAD, "labels": [1]}, LINE),
    "no labels": other({**HEAD, "labels": None}, LINE),
    "a label that is not one": other(HEAD, {**LINE, "given": "ugly"}),
    "a label that is a list": other(HEAD, {**LINE, "right": ["good"]}),
    "a row twice": other(HEAD, LINE, LINE),
    "a row below 0": other(HEAD, {**LINE, "row": -1}),
    "a row that is true": other(HEAD, {**LINE, "row": True}),
    "a row that is a text": other(HEAD, {**LINE, "row": "0"}),
    "a confidence above 1": other(HEAD, {**LINE, "confidence": 2}),
    "a confidence that is a text": other(HEAD, {**LINE, "confidence": "1"}),
    "an input that is a mapping": other(HEAD, {**LINE, "input": {"a": 1}}),
    "an input of numbers": other(HEAD, {**LINE, "input": [1]}),
    "a thumbnail that is none": other(HEAD, {**LINE, "thumbnail": "/9j/'><script>"}),
    "a thumbnail of another kind": other(HEAD, {**LINE, "thumbnail": "iVBORw0KGgo="}),
    "a thumbnail that is large": other(HEAD, {**LINE, "thumbnail": f"/9j/{'A' * 9000}"}),
    "entities of no type": other({**HEAD, "kind": "entities"}, {**LINE, "given": [{"start": 0, "end": 1}]}),
    "entities that are texts": other({**HEAD, "kind": "entities"}, {**LINE, "given": ["bad"]}),
    "labels that are a text": other({**HEAD, "kind": "labels"}, LINE),
    "an answer that is a list": other({**HEAD, "kind": "other"}, {**LINE, "given": [1]}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_answers_are_refused_by_name_and_the_run_is_compared_without_them(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ["bad", "good"], ["good", "good"])
    make_run(tmp_path / "b", ["good", "good"], ["good", "good"], adapter="full", accuracy=0.9)
    DAMAGED[name](run / FILE)
    with pytest.raises(InputError, match=rf"^E-RUN: .*{FILE} is damaged") as refused:
        read_answers(read_run(run))
    assert len(str(refused.value)) < 500
    comparison = compared(tmp_path)
    assert any(line.startswith("The answers of a run are left out") and FILE in line for line in comparison.verdict())
    assert comparison.rows.pairs == {}


def test_a_run_of_an_earlier_version_has_no_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ["bad"], ["bad"])
    (run / FILE).unlink()
    assert read_answers(read_run(run)) is None
    assert compared(run).rows.groups == []


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs if name), attrs


@pytest.mark.parametrize("kind", ["label", "labels", "entities", "other", "text"])
def test_a_hostile_text_is_shown_as_text(kind: str, tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7 * 7 }}</style>'
    one = {"labels": [evil], "entities": [{"type": evil, "start": 0, "end": 1}]}.get(kind, evil)
    none = {"labels": [], "entities": []}.get(kind, "bad")
    inputs = [[evil, "x"]] if kind == "entities" else [evil]
    common = {"kind": kind, "labels": [evil, "bad"], "inputs": inputs}
    make_run(tmp_path / "a", [one], [one], **common)
    make_run(tmp_path / "b", [none], [one], adapter="full", accuracy=0.1, **common)
    text = page_of(compared(tmp_path), tmp_path / "report")
    page = _Tags()
    page.feed(text)
    assert not {"img", "script", "iframe", "link"} & page.tags
    assert "&lt;script&gt;alert(2)&lt;/script&gt;{{ 7 * 7 }}" in text
