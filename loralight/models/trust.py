"""Permissions for a pretrained model that brings more than data: none, unless the user gives them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from loralight.errors import InputError


class Trust(NamedTuple):
    """Permissions that only the user gives; they are not read from the folder of a run or an adapter.

    Args:
        trust_remote_code: True runs the code that a model brings or names; False ignores it (a kernel that the model
            names is still refused); None refuses such a model.
        allow_pickle: whether weights may be a pickle, of which only tensors are read.
    """

    trust_remote_code: bool | None = None
    allow_pickle: bool = False


_NONE = Trust()
_TRUST: ContextVar[Trust] = ContextVar("trust", default=_NONE)  # the default in a new thread


def trust() -> Trust:
    """The permissions in force."""
    return _TRUST.get()


@contextmanager
def trusting(*, trust_remote_code: bool | None = None, allow_pickle: bool = False) -> Iterator[None]:
    """A context in which these permissions hold, see `Trust`.

    Raises:
        InputError: a value is of another type (``E-CONFIG``).
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
