"""What a model's output layer is given, taken on the way to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class GivenStates:
    """What an output layer is given of the tokens that are wanted, of which it is handed all, or only one.

    The hook stays on the layer: a compiled model would be compiled anew for each new one.
    """

    def __init__(self) -> None:
        self._layer: nn.Module | None = None
        self._wanted: Tensor | None = None
        self._one = False
        self._given: list[Tensor] = []

    @contextmanager
    def of(self, layer: nn.Module, wanted: Tensor, *, one: bool) -> Iterator[list[Tensor]]:
        """A context of passes through ``layer``, which fill a list with what they find, each (wanted, width)."""
        if layer is not self._layer:
            layer.register_forward_pre_hook(self._find)
            self._layer = layer
        self._wanted, self._one, self._given = wanted, one, []
        try:
            yield self._given
        finally:
            self._wanted, self._given = None, []

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _find(self, layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if self._wanted is None:
            return None
        states = arguments[0][self._wanted]
        self._given.append(states)
        return ((states[:1] if self._one else states).unsqueeze(0),)
