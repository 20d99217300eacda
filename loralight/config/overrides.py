"""Overrides of a command line whose values Hydra reads literally."""

from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from loralight.config.composition import read_value
from loralight.errors import InputError


def folder_of(override: str) -> Path:
    """The folder that ``run=`` or ``resume=`` names, with or without Hydra's quotes."""
    name = override.partition("=")[2]
    with suppress(InputError):  # a name that Hydra cannot read is taken literally
        name = str(read_value(override)) if not Path(name).exists() else name
    if "${" in name:
        raise InputError("E-RUN", f"{override}: ${{ in a folder's name would be replaced; give it another one")
    return Path(name)


def quoted(override: str) -> str:
    """An override with its value in quotes, so that Hydra takes it literally."""
    name, _, value = override.partition("=")
    return f"{name}={QuotedString(value, Quote.double).with_quotes()}"
