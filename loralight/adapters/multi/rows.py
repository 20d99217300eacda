"""Batches in which each row has its own adapter: the base is computed once, the updates by groups of rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters.disabled import is_off
from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.multi.parts import Parts
from loralight.errors import InputError

_Hook = Callable[..., Tensor]
# by module: hooks that change its output for the rows of this thread
_HOOKS: ContextVar[Mapping[nn.Module, Sequence[_Hook]]] = ContextVar("hooks", default=MappingProxyType({}))
_REGISTERING = Lock()


@contextmanager
def by_rows(base: nn.Module, adapters: Mapping[str, Parts], rows: Sequence[str | None]) -> Iterator[nn.Module]:
    """A context in which ``base`` computes each row of a batch with the row's own adapter.

    It acts in this thread only: other threads may use ``base`` meanwhile, alone or with their own rows.

    Rows must be the first dimension of the input of every adapted module, as in the models of transformers and timm. A
    number of rows other than ``len(rows)`` is refused, but a layout with tokens first cannot be noticed if there are as
    many tokens as rows.

    Where adapters bring heads of different widths, a row's missing outputs are -inf: a softmax gives them 0.

    Args:
        base: the plain model.
        adapters: the changes that each adapter makes in ``base``, by the adapter's name.
        rows: each row's adapter; None for the base.

    Raises:
        InputError: in a forward pass, if a module is given another number of rows (``E-ROWS``).
    """
    device = next(base.parameters()).device
    groups = {
        name: torch.tensor([number for number, row in enumerate(rows) if row == name], device=device)
        for name in dict.fromkeys(name for name in rows if name is not None)
    }
    hooks: dict[nn.Module, list[_Hook]] = {}
    for layer in dict.fromkeys(layer for name in groups for layer in adapters[name].updates):
        updates = {name: adapters[name].updates.get(layer) for name in groups}
        hook = _adding(layer, [(groups[name], found) for name, found in updates.items() if found], len(rows))
        hooks.setdefault(base.get_submodule(layer), []).append(hook)
    for part in dict.fromkeys(part for name in groups for part in adapters[name].whole):
        modules = {name: adapters[name].whole.get(part) for name in groups}
        hook = _replacing(part, [(groups[name], found) for name, found in modules.items() if found], len(rows))
        hooks.setdefault(base.get_submodule(part), []).append(hook)
    for module in hooks:
        _attend_to_rows_(module)
    token = _HOOKS.set({**_HOOKS.get(), **hooks})
    try:
        yield base
    finally:
        _HOOKS.reset(token)


def _attend_to_rows_(module: nn.Module) -> None:
    """Have a module look for hooks of the calling thread; the hook stays, as other threads may be in the module."""
    with _REGISTERING:
        if _by_thread not in module._forward_hooks.values():
            module.register_forward_hook(_by_thread, with_kwargs=True)


def _by_thread(module: nn.Module, given: Any, *others: Any) -> Any:
    """Apply this thread's hooks; ``others`` are keywords and output, unless a call began during registration."""
    hooks = _HOOKS.get().get(module, ())
    if not hooks or is_off(module):
        return None
    named, y = others
    for hook in hooks:
        y = hook(module, given, named, y)
    return y


def _adding(name: str, updates: list[tuple[Tensor, LoraLayer]], num_rows: int) -> _Hook:
    """A hook that adds each adapter's update to its rows of the plain layer's output."""

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> Tensor:
        (x,) = given or named.values()
        _check(name, x, num_rows)
        for rows, layer in updates:
            rows = rows.to(x.device)
            low = F.dropout(x[rows], layer.lora_dropout, layer.training).to(layer.lora_A.dtype)
            y.index_add_(0, rows, (layer.update(low) * layer.scaling).to(y.dtype))
        return y

    return hook


def _replacing(name: str, modules: list[tuple[Tensor, nn.Module]], num_rows: int) -> _Hook:
    """A hook that replaces each adapter's rows by the output of that adapter's own module."""

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> Tensor:
        _check(name, y, num_rows)
        parts = []
        for rows, own in modules:
            args, kwargs = (
                [_only(value, rows, num_rows, name) for value in values] for values in (given, named.values())
            )
            parts.append((rows.to(y.device), own(*args, **dict(zip(named, kwargs, strict=True)))))
        kept = num_rows - sum(len(rows) for rows, _ in parts)
        width = max([part.shape[-1] for _, part in parts] + ([y.shape[-1]] if kept else []))
        y = _widened(y, width)
        for rows, part in parts:
            y = y.index_copy(0, rows, _widened(part, width).to(y.dtype))
        return y

    return hook


def _only(value: Any, rows: Tensor, num_rows: int, name: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    _check(name, value, num_rows)
    return value[rows.to(value.device)]


def _widened(y: Tensor, width: int) -> Tensor:
    return F.pad(y, (0, width - y.shape[-1]), value=-torch.inf) if y.shape[-1] != width else y


def _check(name: str, x: Any, num_rows: int) -> None:
    found = len(x) if isinstance(x, Tensor) and x.ndim else None
    if found != num_rows:
        what = type(x).__name__ if found is None else f"{found} rows"
        raise InputError(
            "E-ROWS",
            f"{num_rows} adapters were named, one for each row of the batch, but {name} has to do with {what}; name as "
            "many as the batch has rows, or run each adapter by itself",
        )
