"""YAML of strangers: plain data or a reason, in bounded time."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralight.errors import InputError
from loralight.plain_yaml import MAX_BYTES, parse_yaml, read_yaml

PLAIN: dict[str, Any] = {
    "a": {"b": [1, 2.5, -1e-08, True, None, "", "x: 'y'\n\tü", "2026-01-01", "1e3", "null"]},
    "*.query": 4,
    3: {"deep": [[[[[["far"]]]]]]},
}


def test_what_is_written_is_read() -> None:
    assert parse_yaml(yaml.safe_dump(PLAIN, sort_keys=False, allow_unicode=True)) == PLAIN


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 1", "anchor"),
        ("a: *x", "alias"),
        ("a: !!str 1", "tag"),
        ("a: ! 1", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("{<<: {a: 1}}", "merge"),
        ("{[1]: 2}", "no key"),
        ("{1.5: 2}", "no key"),
        ("{null: 2}", "no key"),
        ("a: 1\na: 1", "twice"),
        ("a: .nan", "finite"),
        ("a: -.inf", "finite"),
        ("a: 2026-01-01", "no text"),
        ('a: "\\e[31m"', "characters"),
        ('a: "\\ud800"', "characters|cannot"),
        ("a: " + "9" * 5000, "digit"),
        ("[" * 100_000, "deeper than 12"),
        ("- " * 100_000, "deeper than 12"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: [1", "expected"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_not_plain_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_yaml(text)


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"a: {'x' * (MAX_BYTES - 3)}")
    assert len(read_yaml(tmp_path / "x.yaml")["a"]) == MAX_BYTES - 3
    (tmp_path / "x.yaml").write_text(f"a: {'x' * (MAX_BYTES - 2)}")
    with pytest.raises(InputError, match=r"E-RUN: .*128 kB"):
        read_yaml(tmp_path / "x.yaml")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("pipe", "link", ".", "gone"):
        with pytest.raises(InputError, match="E-RUN"):
            read_yaml(tmp_path / name)
