"""The exception for errors that a user can fix, and hints for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "did_you_mean"]


class InputError(Exception):
    """The user's input cannot work; ends a command with one message and exit code 2.

    Args:
        code: a stable name for the kind of mistake, such as ``E-COLUMN``.
        message: the value given, the possible values, and the setting to change.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")


def did_you_mean(given: str, possible: Iterable[str]) -> str:
    """A hint such as `` Did you mean 'rank'?``; an empty string if no name is close."""
    near = get_close_matches(given, list(possible), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
