"""Packages that import their names on first use, so that whoever needs few of them need not wait for torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562).

    Args:
        package: its name.
        homes: names to import, with spaces between them, by the module that has them, such as ``training.task``.
    """
    home_of = {name: f"{package}.{home}" for home, names in homes.items() for name in names.split()}

    def importing(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return importing
