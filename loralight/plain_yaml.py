"""YAML that a stranger may have written: plain data, read in bounded time."""

import math
import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from loralight.errors import InputError
from loralight.regular_file import read_regular

MAX_BYTES = 128 * 1024
"""Most bytes of a file, which are read in two seconds; a run's config has a few kilobytes."""
MAX_DEPTH = 12


class _Plain(yaml.SafeLoader):
    """Allows only mappings whose keys are texts or integers, without duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if strange := [key for key in keys if type(key) not in (str, int) or key == "<<"]:
            raise ValueError(f"{str(strange[0])[:40]!r} is no key")
        if len(set(keys)) < len(keys):
            raise ValueError("a key stands in it twice")
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """`parse_yaml` of a regular file of at most 128 kB.

    Raises:
        InputError: it is not a regular file of plain YAML of this size (``E-RUN``).
    """
    try:
        return parse_yaml(read_regular(file, MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-RUN", f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error


def parse_yaml(text: str) -> Any:
    """The data that a text describes, without tags, anchors, dates or numbers that are not finite.

    Raises:
        ValueError: the text is not such YAML, or is nested deeper than 12.
    """
    try:
        _check_events(text)
        content = yaml.load(text, Loader=_Plain)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    _check_plain(content)
    return content


def _check_events(text: str) -> None:
    """Check nesting, anchors and tags by parser events: unlike PyYAML's constructor, the parser does not recurse."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError("it has an anchor, an alias or a tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(key)
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, str):
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in value):
            raise ValueError(f"{value[:40]!r} has characters that are none of a text")
    elif not isinstance(value, int | None) and not (isinstance(value, float) and math.isfinite(value)):
        raise ValueError(f"{str(value)[:40]} is no text, no finite number, not true, false or null")
