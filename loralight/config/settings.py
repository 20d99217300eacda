"""The settings of a command with their meanings, from docstrings and from the comments in the files of ``conf``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from loralight.config.arguments import Argument, arguments_of
from loralight.config.composition import compose_for_help
from loralight.config.conf_files import ConfFile, chosen, conf_files
from loralight.config.plugins import LIBRARIES
from loralight.errors import did_you_mean

_OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


@dataclass(frozen=True)
class Setting:
    """A setting and what is known of it.

    Args:
        name: its dotted name.
        value: its value, as written in YAML.
        comment: the comment next to it in the file that sets it.
        file: the file that sets it; None if no file does.
        target: the class or function that takes it; empty if there is none.
        taken_as: name of the setting that the class takes: this setting, or one that refers to it.
    """

    name: str
    value: str
    comment: str
    file: ConfFile | None
    target: str
    taken_as: str

    @cached_property
    def argument(self) -> Argument:
        """The argument of its class."""
        return arguments_of(self.target).get(self.taken_as.rpartition(".")[2], Argument("", None))

    @property
    def is_reference(self) -> bool:
        """Whether its value refers to another setting."""
        return self.value.startswith("${")

    @property
    def text(self) -> str:
        """The entry of the docstring with YAML's null, true and false, and without markup."""
        text = re.sub(r":\w+:`~?([^`]*)`", r"\1", self.argument.text).replace("``", "")
        if self.target.partition(".")[0] in LIBRARIES:  # our files have other defaults
            text = re.sub(r" *\(?[Dd]efaults?(?: to)?:? [^ )]*\)?\.?$", "", text)
        for word, said in {"None": "null", "True": "true", "False": "false"}.items():
            text = re.sub(rf"\b{word}\b", said, text)
        return text

    @property
    def meaning(self) -> str:
        """A line on the setting: its docstring's first sentence, or for a library's class the comment in our file."""
        sentence = re.split(r"(?<=[^.])\. (?=[A-Z])", self.text)[0].removesuffix(".")
        is_theirs = self.target.partition(".")[0] in LIBRARIES
        both = [self.comment, sentence] if is_theirs else [sentence, self.comment]
        return next(filter(None, both), "")


class Settings(Mapping[str, Setting]):
    """The settings of a composed config by their dotted names.

    Args:
        config: the composed config, with unresolved references.
        verb: the command.
        choices: the option of each group.
        folders: folders with the user's own configs.
    """

    def __init__(
        self, config: Mapping[str, Any], *, verb: str, choices: Mapping[str, Any], folders: Sequence[str] = ()
    ) -> None:
        self.config, self.choices = config, choices
        self.files = chosen(conf_files(folders), verb, choices)
        own = {
            name: value for name, value in config.items() if name != "names"
        }  # the files chosen, see conf/train.yaml
        self._values = {name: value for name, value in _walk(own) if name.rpartition(".")[2] not in _OF_HYDRA}

    def __getitem__(self, name: str) -> Setting:
        value = self._values[name]
        lines = [(file, lines[name]) for file in reversed(self.files) if name in (lines := file.lines())]
        comment = next((line.comment for _, line in lines if line.comment), "")
        readers = [name, *(one for one in self._values if self._values[one] == f"${{{name}}}")]
        taken_as = next((one for one in readers if self._target(one)), name)
        return Setting(name, value, comment, lines[0][0] if lines else None, self._target(taken_as), taken_as)

    def unlisted(self, name: str) -> Setting | None:
        """A setting that no file names but the class of its node takes; None if there is no such setting."""
        parent, _, last = name.rpartition(".")
        target = self._target(name)
        known = parent in self and last in arguments_of(target)
        return Setting(name, "", "", None, target, name) if known else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def target_of(self, name: str) -> str:
        """The class or function that a node builds; empty if it builds none."""
        node: Any = self.config
        for key in name.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return str(node.get("_target_", "")) if isinstance(node, Mapping) else ""

    def _target(self, name: str) -> str:
        return self.target_of(name.rpartition(".")[0])


def elsewhere(name: str, folders: Sequence[str] = ()) -> list[Setting]:
    """A setting in files that are not part of a config, once for each class that takes it."""
    found: dict[Any, Setting] = {}
    for file in (file for file in conf_files(folders) if not file.is_recipe):
        if (line := file.lines().get(name)) is not None:
            target = file.lines().get(f"{name.rpartition('.')[0]}._target_")
            setting = Setting(name, line.value, line.comment, file, target.value if target else "", name)
            found.setdefault(setting.target or line, setting)
    return [*found.values()]


def nearest(name: str, settings: Settings, folders: Sequence[str] = ()) -> str:
    """The settings that a misspelt name may mean, as a question: first those with its last part in other places."""
    others = (line for file in conf_files(folders) if not file.is_recipe for line in file.lines())
    known = [*dict.fromkeys([*settings, *others])]
    by_last: dict[str, list[str]] = {}
    for one in known:
        by_last.setdefault(one.rpartition(".")[2], []).append(one)
    last = name.rpartition(".")[2]
    close = [last] if last in by_last else get_close_matches(last, by_last, n=3, cutoff=0.6)
    names = [one for word in close for one in by_last[word]] if "." not in name or last in by_last else []
    return f" Did you mean {' or '.join(map(repr, names[:3]))}?" if names else did_you_mean(name, known)


def told_of(message: str, verb: str, overrides: Sequence[str], folders: Sequence[str] = ()) -> str:
    """A line on each setting that an error message on a wrong setting names; empty if it names none."""
    found = re.match(r"E-\w+: (?:there is no setting '([\w.]+)'|([\w.]+):)", message)
    if found is None:
        return ""
    kept = [override for override in overrides if override.lstrip("+~").partition("=")[0] != found[1]]
    try:
        config, choices, _ = compose_for_help(verb, kept, folders)
    except (HydraException, OmegaConfBaseException):  # such as from another setting
        return ""
    settings = Settings(config, verb=verb, choices=choices, folders=folders)
    hint = re.search(r"Did you mean (.*?)\?", message)
    near = re.findall(r"'([\w.]+)'", hint[1]) if hint else []
    parent = found[1].rpartition(".")[0] if found[1] else found[2]
    names = [full for name in near for full in (f"{parent}.{name}", name) if full in settings][:3] or [found[2]]
    told = [settings[name] for name in names if name in settings and settings[name].meaning]
    return "".join(f"\n  {one.name}{'' if one.name == found[2] else f'={one.value}'}: {one.meaning}" for one in told)


def _walk(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        name, is_mapping = f"{prefix}{key}", isinstance(value, Mapping)
        yield name, "" if is_mapping and value and (not prefix or _is_node(value)) else _flow(value)
        if is_mapping:
            yield from _walk(value, f"{name}.")


def _is_node(value: Mapping[str, Any]) -> bool:
    """Whether a mapping has settings of its own; if not, it is a value, such as names of columns."""
    return "_target_" in value or any("_target_" in inner for inner in value.values() if isinstance(inner, Mapping))


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or '""'
