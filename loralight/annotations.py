"""Checks plain values against type annotations."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def mismatch(value: Any, hint: Any) -> str:
    """The type that ``value`` should have; an empty string if it fits, or if the hint is not for plain values."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return ""
    if origin in (Union, types.UnionType):
        scalar = any(option in WORDS for option in inner)
        options = [option for option in inner if not (scalar and _is_foreign(value, option))]
        expected = [mismatch(value, option) for option in options]
        return "" if "" in expected else " or ".join(dict.fromkeys(expected))
    if hint is type(None):
        return "null" if value is not None else ""
    if origin is Literal:
        return "" if value in inner else f"one of {', '.join(map(str, inner))}"
    if hint in WORDS:
        accepted = (int, float) if hint is float else (hint,)
        fits = isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
        return "" if fits else WORDS[hint]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "a mapping"
        return next(
            (f"a mapping to {e}" for v in value.values() if len(inner) == 2 and (e := mismatch(v, inner[1]))), ""
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return "a list"
        return next((f"a list with each element {e}" for v in value if inner and (e := mismatch(v, inner[0]))), "")
    return ""


def _is_foreign(value: Any, hint: Any) -> bool:
    """Whether ``hint`` is a class and ``value`` not an instance of it; so ``float | Tensor`` refuses a text."""
    if not isinstance(hint, type) or hint in (*WORDS, type(None), Any) or getattr(hint, "_is_protocol", False):
        return False
    return not isinstance(value, hint)
