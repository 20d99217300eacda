"""A model's newly initialised parameters, found by following values while the model is built.

This works for any loader (transformers, timm, a plugin's own code): the values of a file come from outside, and those
of an initialiser are computed here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_FILLING = {_aten.copy_, _aten.fill_, _aten.zero_, _aten._foreach_copy_}
"""Operators that overwrite a tensor without reading it, like those that draw at random or have an ``out``."""


class Origin(IntEnum):
    """Where values come from; the result of several tensors has the highest of their origins."""

    FIXED = 0
    """Numbers in the code."""
    DRAWN = 1
    """Random numbers."""
    GIVEN = 2
    """Values from outside, such as a file's."""


class Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values through each operator, from its inputs to its outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: dict[StorageWeakRef, Origin] = {}  # a kept reference keeps its address

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        taken, written = _tensors((args, given)), _written(operator, args, given)
        origin = self._origin_of_result(operator, taken, written)
        before = set(filter(None, map(_storage, taken)))
        for tensor in written:
            self._note(tensor, origin if _is_whole(tensor) else max(origin, self.of(tensor)))
        made = operator(*args, **given)
        for tensor in _tensors(made):
            if _storage(tensor) not in before and not any(tensor is one for one in written):  # else it is a view
                self._note(tensor, origin)
        if operator.overloadpacket is _aten.lift_fresh and made.numel() == 1:
            self._note(made, Origin.FIXED)  # `torch.tensor(0.07)`; a list may be a file's
        return made

    def _origin_of_result(self, operator: Any, taken: Sequence[Tensor], written: Sequence[Tensor]) -> Origin:
        draws = torch.Tag.nondeterministic_seeded in operator.tags
        overwrites = draws or operator.overloadpacket in _FILLING or _has_out(operator)
        read = [one for one in taken if not (overwrites and any(one is other for other in written))]
        return max([Origin.DRAWN if draws else Origin.FIXED, *map(self.of, read)])

    def of(self, tensor: Tensor) -> Origin:
        """Where a tensor's values come from."""
        storage = _storage(tensor)
        return Origin.GIVEN if storage is None else self._origins.get(storage, Origin.GIVEN)

    def _note(self, tensor: Tensor, origin: Origin) -> None:
        if (storage := _storage(tensor)) is not None:
            self._origins[storage] = origin

    def take_as_given(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors as read from a file, though no value is read."""
        for tensor in tensors:
            self._note(tensor, Origin.GIVEN)

    def fresh(self, model: nn.Module) -> set[str]:
        """Names of the new parameters of a model; empty if the model has no pretrained parameters.

        A constant that requires no gradient does not count: nobody wants to train it.
        """
        origins = {name: self.of(parameter) for name, parameter in model.named_parameters()}
        if Origin.GIVEN not in origins.values():
            return set()  # such a model is random on purpose
        constant = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        return {
            name
            for name, origin in origins.items()
            if origin is Origin.DRAWN or (origin is Origin.FIXED and name not in constant)
        }


_WATCHING: ContextVar[Origins | None] = ContextVar("watching", default=None)


@contextmanager
def watching_origins() -> Iterator[Origins]:
    """A context in which a model is built; `Origins.fresh` then names its new parameters."""
    with Origins() as origins:
        token = _WATCHING.set(origins)
        try:
            yield origins
        finally:
            _WATCHING.reset(token)


def take_as_given(tensors: Iterable[Tensor]) -> None:
    """`Origins.take_as_given` of the surrounding context, if there is one, for models built without weights."""
    if (origins := _WATCHING.get()) is not None:
        origins.take_as_given(tensors)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _written(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments that it writes into."""
    arguments = operator._schema.arguments
    named = {**{argument.name: value for argument, value in zip(arguments, args, strict=False)}, **kwargs}
    writes = [one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write]
    return _tensors([named.get(name) for name in writes])


def _has_out(operator: Any) -> bool:
    return any(argument.is_out for argument in operator._schema.arguments)


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # a sparse tensor, for example, has none
        return None


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor fills its storage, so that it is not a part of another tensor."""
    return _storage(tensor) is not None and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
