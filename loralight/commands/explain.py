"""``loralight explain SETTING|E-CODE``: explains a setting, a choice or the code of an error; nothing is started."""

import re
from collections.abc import Iterator
from textwrap import fill

from loralight.config.composition import compose_for_help
from loralight.config.conf_files import ConfFile, Line, conf_files
from loralight.config.error_codes import CODE, PAGE, codes, messages, passages, reasons
from loralight.config.help_page import page_width, rows_of
from loralight.config.settings import Setting, Settings, elsewhere, nearest
from loralight.errors import InputError, did_you_mean

USAGE = """loralight explain SETTING|E-CODE: what a setting, a choice or the code of an error means.

  loralight explain optimizer.lr
  loralight explain adapter                        its choices, and the settings of the one that is chosen
  loralight explain data.columns task=ner          where choices differ
  loralight explain E-COLUMN
"""


def main(words: list[str], folders: list[str]) -> None:
    """Print an explanation of each name among the words; the other words are choices such as ``task=ner``.

    Raises:
        InputError: there is no such setting, choice or code (``E-OVERRIDE``).
    """
    overrides = [word for word in words if re.search("=.", word)]
    names = [word.rstrip("=") for word in words if word not in overrides]
    if not words or {"--help", "-h"} & set(words):
        print(USAGE)
        return
    for name in names or [override.lstrip("+~").partition("=")[0] for override in overrides]:
        is_code = CODE.fullmatch(name.upper().replace("_", "-"))
        print("\n".join(_code(is_code[0]) if is_code else _name(name, overrides, folders)), end="\n\n")


def _code(code: str) -> Iterator[str]:
    known = codes()
    if code not in known:
        raise InputError("E-OVERRIDE", f"no error has the code {code}.{did_you_mean(code, known)}")
    yield code
    for heading, text in passages(code):
        yield from ["", f"  {heading} ({PAGE})", _filled(text, 4)]
    if raised := reasons(code, known[code]):
        yield from ["", "  it is raised where", *(_filled(f"{said} ({place})", 4, "- ") for said, place in raised)]
    if says := messages(code, known[code]):
        yield from ["", "  its messages", *(_filled(message, 4, "- ") for message in says)]


def _name(name: str, overrides: list[str], folders: list[str]) -> Iterator[str]:
    config, choices, _ = compose_for_help("train", overrides, folders)
    settings = Settings(config, verb="train", choices=choices, folders=folders)
    if group := [file for file in conf_files(folders) if file.group == name]:
        return _group(name, group, settings)
    if name in settings and settings[name].value == "":
        return iter([name, "", *rows_of(settings, name)])
    found = [settings[name]] if name in settings else [*filter(None, [settings.unlisted(name)])]
    if found and not found[0].meaning and "." in name:  # such as a column's name
        found = [settings[name.rpartition(".")[0]]]
    if found := found or elsewhere(name, folders):
        return (line for setting in found for line in _setting(setting, settings, folders))
    raise InputError("E-OVERRIDE", f"there is no setting {name!r}.{nearest(name, settings, folders)}")


def _group(name: str, files: list[ConfFile], settings: Settings) -> Iterator[str]:
    yield from [name, ""]
    chosen = settings.choices.get(name)
    for file in files:
        yield _filled(f"{name}={file.option}{' (chosen)' if file.option == chosen else ''}: {file.description}", 2)
    if name in settings:
        yield from ["", *rows_of(settings, name)]


def _setting(setting: Setting, settings: Settings, folders: list[str]) -> Iterator[str]:
    yield f"{setting.name} (with a plus: +{setting.name}=)" if setting.file is None else setting.name
    if setting.text or setting.comment:
        yield from ["", _filled(setting.text or setting.comment, 2), ""]
    remark = f"  # {setting.comment}" if setting.comment and setting.text else ""
    others = {f"{file} ({line.value})": None for file, line in _others(setting, folders)}
    facts = {
        "default": f"{setting.value}{_resolved(setting, settings)}{remark}" if setting.file else "",
        "values": setting.argument.values,
        "set in": f"{setting.file.path} ({setting.file})" if setting.file else "",
        "taken by": setting.target + (f", as {setting.taken_as}" if setting.taken_as != setting.name else ""),
        "also in": ", ".join(others),
    }
    for fact, text in facts.items():
        if text:
            yield fill(text, page_width(), initial_indent=f"  {fact:<10}", subsequent_indent=" " * 12)


def _others(setting: Setting, folders: list[str]) -> Iterator[tuple[ConfFile, Line]]:
    """The other choices of the setting's group that have the setting."""
    own = setting.file
    files = [file for file in conf_files(folders) if own is not None and file.group == own.group != ""]
    lines = ((file, file.lines().get(setting.name)) for file in files if file != own)
    return ((file, line) for file, line in lines if line is not None)


def _resolved(setting: Setting, settings: Settings) -> str:
    referred = setting.value.removeprefix("${").removesuffix("}")
    return f", which is {settings[referred].value}" if setting.is_reference and referred in settings else ""


def _filled(text: str, indent: int, mark: str = "") -> str:
    space = " " * indent
    return fill(text, page_width(), initial_indent=space + mark, subsequent_indent=space + " " * len(mark))
