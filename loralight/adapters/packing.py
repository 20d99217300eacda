"""Frozen weights in the order in which oneDNN multiplies with them, made once in place of in every product.

On a processor this saves a tenth to a fifth of a frozen product, and costs two more copies of each weight: W, and its
transpose for the backward pass. The operators are PyTorch's own for compiled models, and no public ones.
"""

from functools import cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Packed:
    """A matrix (out, in) that is packed when it is first multiplied with, in each dtype that asks for it."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._packed: dict[torch.dtype, Tensor] = {}

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear` of x (rows, in), without gradients."""
        if x.dtype not in self._packed:
            matrix = self._matrix.to(x.dtype).contiguous()
            self._packed[x.dtype] = torch.ops.mkldnn._reorder_linear_weight(matrix, None)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[x.dtype], bias, "none", [], "")
        return y


class Packs(NamedTuple):
    """A weight as it is and transposed."""

    matrix: Packed
    transposed: Packed

    @property
    def T(self) -> "Packs":
        """The packs of the transposed weight."""
        return Packs(self.transposed, self.matrix)


class _Entry(NamedTuple):
    """Packs, and of what: the weight's numbers and how often they had been written to."""

    packs: Packs
    data: Tensor  # held, so that no other tensor comes to lie where it does
    version: int

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        data = weight.data
        return cls(Packs(Packed(data), Packed(data.T)), data, weight._version)

    def is_of(self, weight: Tensor) -> bool:
        same = (self.data.data_ptr(), self.data.dtype) == (weight.data_ptr(), weight.dtype)
        return same and self.version == weight._version


# By the parameter itself: layers that share one share its packs, and neither a copy of a layer nor what is saved of it
# has any. None for a weight that is to be packed and has not been used yet.
_entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def register_(weight: Tensor) -> None:
    """Let this frozen weight be packed when it is first used in training."""
    if weight not in _entries:
        _entries[weight] = None


def forget_(weight: Tensor) -> None:
    """Undo `register_`."""
    if weight in _entries:
        del _entries[weight]


def packs_of(weight: Tensor) -> Packs | None:
    """The packs of a weight where it is to have some; none without gradients, so that evaluation stays bit-equal.

    They are made anew once the weight was written to, cast, or moved.
    """
    if not torch.is_grad_enabled() or weight not in _entries:
        return None
    entry = _entries[weight]
    if entry is None or not entry.is_of(weight):
        entry = _entries[weight] = _Entry.of(weight) if weight.device.type == "cpu" else None
    return None if entry is None else entry.packs


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None) -> Tensor:
    """``x W^T + bias`` in x's dtype, by the packed weight if there is one; in a function with a gradient of its own.

    Shapes: x (rows, in), weight (out, in).
    """
    if packed is not None and can_pack(x.dtype):
        return packed.linear(x, bias)
    return F.linear(x, weight.to(x.dtype), bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this processor packs weights of ``dtype`` and multiplies rightly with them."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    x, weight = torch.eye(4, dtype=dtype), torch.arange(12.0, dtype=dtype).view(3, 4)
    try:
        found = Packed(weight).linear(x, torch.ones(3, dtype=dtype))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, weight.T + 1)
