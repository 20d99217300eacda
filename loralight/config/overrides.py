"""Overrides of a command line whose values Hydra reads literally."""

import re
from collections.abc import Sequence
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


def with_launcher(overrides: Sequence[str], *, is_sweep: bool) -> list[str]:
    """The overrides, with ``launcher=`` and ``launcher.<name>=`` by Hydra's own names.

    Raises:
        InputError: there is a launcher and no sweep whose jobs it would start (``E-LAUNCHER``).
    """
    named = [
        re.sub(r"^(\+*)launcher\.", r"\1hydra.launcher.", re.sub("^launcher=", "hydra/launcher=", o)) for o in overrides
    ]
    chosen = [word for word, theirs in zip(overrides, named, strict=True) if theirs.startswith("hydra/launcher=")]
    if chosen and not is_sweep:
        raise InputError(
            "E-LAUNCHER",
            f"{chosen[0]} starts the jobs of a sweep: loralight sweep {chosen[0]} ..., of one job too; this command "
            "trains here and now, in as many processes as trainer.devices= says",
        )
    return named


def quoted(override: str) -> str:
    """An override with its value in quotes, so that Hydra takes it literally."""
    name, _, value = override.partition("=")
    return f"{name}={QuotedString(value, Quote.double).with_quotes()}"
