"""Permissions for a pretrained model that brings more than data: none, unless the user gives them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from loralight.errors import InputError


class Trust(NamedTuple):
    """The user's word; a run's or an adapter's folder has no say in it.

    Args:
        trust_remote_code: True runs the code that a model brings or names, False passes over it (a kernel that it names
            is refused all the same), None refuses such a model.
        allow_pickle: weights may be a pickle, of which tensors alone are read.
    """

    trust_remote_code: bool | None = None
    allow_pickle: bool = False


_NONE = Trust()
_TRUST: ContextVar[Trust] = ContextVar("trust", default=_NONE)  # a new thread begins with it


def trust() -> Trust:
    """The permissions in force."""
    return _TRUST.get()


@contextmanager
def trusting(*, trust_remote_code: bool | None = None, allow_pickle: bool = False) -> Iterator[None]:
    """A context in which this is allowed, see `Trust`.

    Raises:
        InputError: a value is another (``E-CONFIG``).
    """
    if not isinstance(trust_remote_code, bool | None):
        raise InputError("E-CONFIG", f"model.trust_remote_code={trust_remote_code}: give true, false or null")
    if not isinstance(allow_pickle, bool):
        raise InputError("E-CONFIG", f"model.allow_pickle={allow_pickle}: give true or false")
    token = _TRUST.set(Trust(trust_remote_code, allow_pickle))
    try:
        yield
    finally:
        _TRUST.reset(token)


def trust_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config's ``model`` node as arguments of `trusting`; the permissions in force where it has none."""
    return {name: (config.get("model") or {}).get(name, value) for name, value in trust()._asdict().items()}
