"""The YAML files of the ``conf`` folders: their settings, and the comment next to each."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from loralight.config.plugins import conf_folders

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RECIPES = ("experiment/", "debug/", "task/adapter/")


@dataclass(frozen=True)
class Line:
    """A setting in a file.

    Args:
        name: its dotted name, from the root of the config.
        value: its value, as written; empty for a node with settings of its own.
        comment: the comment after it.
    """

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class ConfFile:
    """A file of a ``conf`` folder.

    Args:
        path: the file.
        group: its group, such as ``adapter``; empty for the config of a verb.
        option: its name in the group, or the verb.
    """

    path: Path
    group: str
    option: str

    def __str__(self) -> str:
        return f"{self.group}={self.option}" if self.group else f"loralight {self.option}"

    @property
    def is_recipe(self) -> bool:
        """Whether it only sets settings that other files describe."""
        return f"{self.group}/".startswith(_RECIPES)

    @property
    def description(self) -> str:
        """The comment at its head."""
        head: list[str] = []
        for line in self._text().splitlines():
            if not line.startswith("#"):
                break
            head += [] if "@package" in line else [line.lstrip("# ")]
        return " ".join(head)

    def lines(self) -> dict[str, Line]:
        """Its settings, by name."""
        return _lines(self)

    def parents(self) -> list[str]:
        """The options of its group, or the verbs, that its defaults list names."""
        root = _compose(self._text())
        entries: list[Any] = next((value.value for key, value in _pairs(root) if key.value == "defaults"), [])
        names = [entry.value.partition("@")[0] for entry in entries if isinstance(entry, yaml.ScalarNode)]
        return [name for name in names if name != "_self_"]

    def _text(self) -> str:
        return _read(self.path)

    def _prefix(self) -> str:
        is_global = re.match(r"# @package _global_$", self._text().partition("\n")[0])
        return "" if is_global or not self.group else f"{self.group.replace('/', '.')}."


def conf_files(folders: Iterable[str] = ()) -> list[ConfFile]:
    """The files of loralight, of working plugins and of further folders."""
    found = []
    for folder in [*map(Path, folders), *conf_folders()]:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.relative_to(folder).parent.as_posix()
            found.append(ConfFile(path, "" if group == "." else group, path.stem))
    return found


def chosen(files: Iterable[ConfFile], verb: str, choices: Mapping[str, Any]) -> list[ConfFile]:
    """The files that make up a config: each after the files that it extends, the verb's before those of choices."""
    known = {(file.group, file.option): file for file in reversed([*files]) if not file.is_recipe}
    order: dict[ConfFile, None] = {}
    for group, option in [("", verb), *choices.items()]:
        order |= dict.fromkeys(_with_parents(known, group, str(option)))
    return [*order]


def _with_parents(known: Mapping[tuple[str, str], ConfFile], group: str, option: str) -> Iterator[ConfFile]:
    if (file := known.get((group, option))) is not None:
        for parent in file.parents():
            if parent != option:
                yield from _with_parents(known, group, parent)
        yield file


@cache
def _lines(file: ConfFile) -> dict[str, Line]:
    text, prefix = file._text(), file._prefix()
    not_settings = [f"{prefix}defaults", "hydra"]
    lines = _walk(_compose(text), prefix, text.split("\n"))
    return {line.name: line for line in lines if not any(f"{line.name}.".startswith(f"{no}.") for no in not_settings)}


def _walk(node: Any, prefix: str, rows: list[str]) -> Iterator[Line]:
    for key, value in _pairs(node):
        name = f"{prefix}{key.value}"
        is_node = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if is_node else value.end_mark
        told = re.fullmatch(r":?\s*#\s*(.*)", rows[end.line][end.column :]) if end.line < len(rows) else None
        written = "" if is_node else rows[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        yield Line(name, written, told[1] if told else "")
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, f"{name}.", rows)


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _compose(text: str) -> Any:
    return yaml.compose(text, Loader=_LOADER)


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
