"""Overrides of a command line: names that Hydra reads as they stand."""

from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from loralight.config.composition import read_value
from loralight.errors import InputError


def folder_of(override: str) -> Path:
    """The folder that ``run=`` or ``resume=`` names, be it in Hydra's quotes or as it is called."""
    name = override.partition("=")[2]
    with suppress(InputError):  # a name that Hydra cannot read stands for itself
        name = str(read_value(override)) if not Path(name).exists() else name
    if "${" in name:
        raise InputError("E-RUN", f"{override}: ${{ in a folder's name would be replaced; give it another one")
    return Path(name)


def quoted(override: str) -> str:
    """An override whose value is the text as it stands, whatever Hydra would make of it."""
    name, _, value = override.partition("=")
    return f"{name}={QuotedString(value, Quote.double).with_quotes()}"
