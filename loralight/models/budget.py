"""Bounds on the size of a model from a stranger, by the header of its weights, before it takes memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loralight.errors import InputError

_aten = torch.ops.aten
_SIZED = {_aten.empty, _aten.empty_strided, _aten.zeros, _aten.ones, _aten.full, _aten.rand, _aten.randn, _aten.randint}


class Size(NamedTuple):
    """The number of tensors, and the number of values in all of them."""

    tensors: int
    values: int


class _Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that operators create, and raises before they exceed the bound."""

    def __init__(self, size: Size, error: InputError) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.error = size, error

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if (values := _values(operator.overloadpacket, args)) is not None:
            self.left = Size(self.left.tensors - 1, self.left.values - values)
            if min(self.left) < 0:
                raise self.error
        return operator(*args, **(kwargs or {}))


def _values(operator: Any, args: Sequence[Any]) -> int | None:
    """The number of values that an operator creates; None if it computes a tensor from other tensors."""
    if operator in _SIZED:
        sizes: Sequence[int] = next((a for a in args if isinstance(a, list | tuple)), ())  # behind randint's `high`
        return int(math.prod(sizes))
    if operator is _aten.arange:
        start, end, step = ((0, *args, 1) if len(args) == 1 else (*args, 1))[:3]
        return int(max(0, math.ceil((end - start) / step)))
    return None


@contextmanager
def at_most(size: Size, error: InputError) -> Iterator[None]:
    """A context in which building a model raises ``error`` as soon as it asks for more."""
    with _Budget(size, error):
        yield


_ADDED: ContextVar[tuple[Size, InputError] | None] = ContextVar("added", default=None)


@contextmanager
def adding_at_most(size: Size, error: InputError) -> Iterator[None]:
    """A context in which an adapter may add at most this to its model; ``error`` is raised if it would add more."""
    token = _ADDED.set((size, error))
    try:
        yield
    finally:
        _ADDED.reset(token)


@contextmanager
def within_what_may_be_added() -> Iterator[None]:
    """A context for injecting an adapter, which enforces the bound of `adding_at_most`, if there is one."""
    if (limit := _ADDED.get()) is None:
        yield
        return
    with at_most(*limit):
        yield
