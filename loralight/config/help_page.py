"""The page that ``--help`` prints for a verb: its choices, and its settings by group with a line on each."""

import shutil
from collections.abc import Iterator, Sequence
from textwrap import shorten, wrap

from loralight.config.arguments import summary_of
from loralight.config.composition import compose_for_help
from loralight.config.conf_files import conf_files
from loralight.config.settings import Settings

_COLUMN = 36  # where meanings begin
_FOOT_OF_CHOICES = (
    "--multirun runs every combination of values with commas between them.",
    "--config-dir DIR adds a folder with choices of your own.",
)
_FOOT = (
    "--cfg job prints the settings as YAML. Hydra's own flags: --hydra-help",
    "loralight explain NAME tells more of a setting, a choice, or the code of an error.",
)


def help_page(verb: str, overrides: list[str], folders: Sequence[str] = ()) -> str:
    """The help page for the choices on the command line."""
    config, choices, header = compose_for_help(verb, overrides, folders)
    settings = Settings(config, verb=verb, choices=choices, folders=folders)
    width = page_width()
    lines = [header.rstrip(), ""]
    if choices:
        lines += ["== Choices (name=option) ==", *_choices(settings, width, folders), ""]
    lines += ["== Settings (name=value) ==", *_settings(settings, width), ""]
    return "\n".join([*lines, *(_FOOT_OF_CHOICES if choices else ()), *_FOOT])


def _choices(settings: Settings, width: int, folders: Sequence[str]) -> Iterator[str]:
    for group, choice in reversed([*settings.choices.items()]):
        if "/" not in group:  # else another choice decides on it
            others = sorted({file.option for file in conf_files(folders) if file.group == group} - {choice})
            first = f"  {group}={'null' if choice is None else choice}"
            yield from _columns(first, f"or {', '.join(others)}" if others else "", width, lines=9)


def _settings(settings: Settings, width: int) -> Iterator[str]:
    single = [name for name in settings if "." not in name and settings[name].value]
    yield from (line for name in single for line in _row(settings, name, width))
    for group in (name for name in settings if "." not in name and name not in single):
        yield from ["", *_heading(settings, group, width), *rows_of(settings, group)]


def rows_of(settings: Settings, group: str) -> Iterator[str]:
    """A line or two for each setting of a group."""
    for name in settings:
        if name.startswith(f"{group}.") and not settings[name.rpartition(".")[0]].value:
            yield from _row(settings, name, page_width())


def _heading(settings: Settings, group: str, width: int) -> list[str]:
    choice = settings.choices.get(group)
    file = next((file for file in reversed(settings.files) if (file.group, file.option) == (group, choice)), None)
    told = settings[group].comment if file is None else file.description
    return [shorten(f"{group if file is None else file}: {told}".rstrip(": "), width, placeholder=" ...")]


def _row(settings: Settings, name: str, width: int) -> list[str]:
    setting = settings[name]
    if setting.value == "":
        return _columns(f"  {name}", setting.comment or summary_of(settings.target_of(name)), width)
    told = setting.comment if setting.is_reference else setting.meaning
    return _columns(f"  {name}={setting.value.removeprefix('???')}", told, width)


def _columns(first: str, second: str, width: int, *, lines: int = 2) -> list[str]:
    """Two columns; if the first is too long, it gets a line of its own."""
    wrapped = wrap(second, width - _COLUMN, max_lines=lines, placeholder=" ...")
    if len(first) > _COLUMN - 2 and wrapped:
        return [first, *(" " * _COLUMN + line for line in wrapped)]
    rows = [first.ljust(_COLUMN) + line if at == 0 else " " * _COLUMN + line for at, line in enumerate(wrapped)]
    return rows or [first]


def page_width() -> int:
    """Characters in a line: the terminal's width, between 80 and 120."""
    return max(80, min(120, shutil.get_terminal_size((120, 24)).columns))
