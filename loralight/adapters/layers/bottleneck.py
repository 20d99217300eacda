"""Layers with a bottleneck after them or in parallel, each upgraded in place."""

import threading
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from loralight.adapters.base import Added
from loralight.adapters.disabled import Switchable, is_off
from loralight.errors import InputError
from loralight.models.blocks import widths


class Bottleneck(Added):
    """``scale * up(relu(down(x)))``; ``up`` starts at 0, so that the output is 0 before training.

    Shapes: x (..., outer), or (batch, outer, height, width) with 1 x 1 convolutions; the result is like x.

    Args:
        outer: width of the input and the output.
        inner: width in between.
        scale: a constant factor.
        layer: the class of ``down`` and ``up``.
        like: a weight of the adapted layer, for the device and the dtype.
    """

    def __init__(self, outer: int, inner: int, *, scale: float = 1.0, layer: Any = nn.Linear, like: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32)  # half precision would round small steps away
        self.down = layer(outer, inner, device=like.device, dtype=dtype)
        self.up = layer(inner, outer, device=like.device, dtype=dtype)
        self.scale = scale
        nn.init.zeros_(self.down.bias)  # a bias larger than the inputs would switch units off for good
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(F.relu(self.down(x.to(self.up.weight.dtype)))) * self.scale
        return y.to(x.dtype)


def width_of(layer: nn.Module) -> int:
    """The width of a layer's output."""
    return int(layer.out_channels) if isinstance(layer, nn.Conv2d) else widths(layer)[1]


class SerialLayer(Switchable):
    """A frozen layer followed by a bottleneck with a residual connection: ``y + bottleneck(y)``."""

    bottleneck: Bottleneck
    made_of: ClassVar[Any] = nn.Linear
    """The class of the bottleneck's layers."""

    weight: Any  # of the plain layer, which types it in its own way

    @classmethod
    def upgrade_(cls, layer: nn.Module, width: int) -> None:
        """Add a bottleneck of ``width``."""
        outer = width_of(layer)
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.bottleneck = Bottleneck(outer, width, layer=cls.made_of, like=layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # the plain layer's, which comes next in every subclass
        return y if is_off(self) else y + self.bottleneck(y)


class SerialLinear(SerialLayer, nn.Linear):
    """See `SerialLayer`."""


class SerialConv1D(SerialLayer, Conv1D):
    """See `SerialLayer`."""


class _PointwiseConv(nn.Conv2d):
    """A linear layer for each pixel."""

    def __init__(self, inputs: int, outputs: int, **where: Any) -> None:
        super().__init__(inputs, outputs, kernel_size=1, **where)


class SerialConv2d(SerialLayer, nn.Conv2d):
    """See `SerialLayer`."""

    made_of = _PointwiseConv


SERIAL: dict[type[nn.Module], type[SerialLayer]] = {
    nn.Linear: SerialLinear,
    Conv1D: SerialConv1D,
    nn.Conv2d: SerialConv2d,
}
"""The class with a bottleneck, by the class of the plain layer."""


class _Beside(threading.local):
    """Bottlenecks' outputs that a thread has computed for networks it is still in; threads may share a model."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, Tensor] = {}


_BESIDE = _Beside()


class ReadLayer(Switchable):
    """The first layer of a network with a parallel bottleneck, which reads the same input.

    The bottleneck belongs to the network's last layer, which adds the bottleneck's output to its own.
    """

    last: tuple["AddingLayer"]  # in a tuple, so that it is not registered as a submodule

    def forward(self, x: Tensor) -> Tensor:
        if not is_off(self):
            _BESIDE.of[self.last[0]] = self.last[0].bottleneck(x)
        y: Tensor = super().forward(x)
        return y


class AddingLayer(Switchable):
    """The last layer of a network with a parallel bottleneck."""

    bottleneck: Bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        if is_off(self):
            return y
        if self not in _BESIDE.of:
            raise InputError(
                "E-LAYER",
                "the last layer of a network with a bottleneck beside it is called without the first, which reads what "
                "the bottleneck does: call the network as a whole, or choose adapter=pfeiffer",
            )
        return y + _BESIDE.of.pop(self)  # no activation outlives a step


class ReadLinear(ReadLayer, nn.Linear):
    """See `ReadLayer`."""


class ReadConv1D(ReadLayer, Conv1D):
    """See `ReadLayer`."""


class AddingLinear(AddingLayer, nn.Linear):
    """See `AddingLayer`."""


class AddingConv1D(AddingLayer, Conv1D):
    """See `AddingLayer`."""


_PARALLEL = {nn.Linear: (ReadLinear, AddingLinear), Conv1D: (ReadConv1D, AddingConv1D)}


def add_parallel_(first: nn.Module, last: nn.Module, width: int, *, scale: float) -> None:
    """Add a bottleneck of ``width`` in parallel to the network from ``first`` to ``last``, both linear layers."""
    outer = width_of(last)
    first.__class__, last.__class__ = _PARALLEL[type(first)][0], _PARALLEL[type(last)][1]
    assert isinstance(first, ReadLayer) and isinstance(last, AddingLayer)
    last.bottleneck = Bottleneck(outer, width, scale=scale, like=next(last.parameters()))
    first.last = (last,)
