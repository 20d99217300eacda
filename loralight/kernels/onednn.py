"""Products with frozen weights by oneDNN where a trial finds it faster than `F.linear`: 0.45 of its time on AMD Zen 5.

oneDNN reorders a weight for every product. It can also keep the weight in that order, packed, which is faster by a few
hundredths and costs two more copies of each weight: W and its transpose for the backward pass. The operators are
PyTorch's own for compiled models, and are not public.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from loralight.kernels.trial import is_faster

_MANY = 64  # rows; with fewer, oneDNN is not faster; nor in half precision, where `F.linear` uses it anyway
_SMALL = 2**14  # elements of a weight below which a product takes no time worth a trial
_TRIAL = 2**29  # multiplications of a product in a trial: some 10 ms
_FEW = "64"  # products whose code is kept: more than a layer has, forwards and backwards


def remember_few_products() -> None:
    """Let oneDNN keep the code of its last products alone; for batches of ever new lengths, before its first product.

    By default it keeps that of 1,024, which lies in small pieces between the tensors of a step, so that malloc can
    neither join nor return what the tensors leave: a run's memory grows with each new length. Networks of convolutions,
    whose shapes repeat, are slower with few. A user's own ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _FEW)


class Matrix:
    """A matrix (out, in) that is used in products as it is."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear` of x (rows, in) in its dtype, without gradients."""
        if len(x) >= _MANY and x.dtype is self.values.dtype and gains(self.values):
            return _linear(x, self.values, bias)
        return F.linear(x, self.values.to(x.dtype), bias)


class PackedMatrix(Matrix):
    """A matrix that is packed at its first product in each dtype."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values)
        self.packed: dict[torch.dtype, Tensor] = {}

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not can_multiply(x.dtype) or not (x.dtype is torch.bfloat16 or gains(self.values, packed=True)):
            return super().linear(x, bias)
        if x.dtype not in self.packed:
            self.packed[x.dtype] = _pack(self.values.to(x.dtype))
        return _linear(x, self.packed[x.dtype], bias)


class Matrices(NamedTuple):
    """A weight and its transpose."""

    weight: Matrix
    transposed: Matrix

    @property
    def T(self) -> "Matrices":
        """The matrices of the transposed weight."""
        return Matrices(self.transposed, self.weight)


class _Entry(NamedTuple):
    """Packed matrices, with the weight they were packed from and its version counter at that time."""

    matrices: Matrices
    data: Tensor  # held, so that no other tensor gets its address
    version: int

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        data = weight.data
        return cls(Matrices(PackedMatrix(data), PackedMatrix(data.T)), data, weight._version)

    def is_of(self, weight: Tensor) -> bool:
        same = (self.data.data_ptr(), self.data.dtype) == (weight.data_ptr(), weight.dtype)
        return same and self.version == weight._version


# By the parameter itself: layers that share a parameter share its packed matrices, and neither a copy nor a checkpoint
# of a layer holds any. None for a weight that is to be packed and has not been used yet.
_entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def register_(weight: Tensor) -> None:
    """Let this frozen weight be packed when it is first used in training."""
    if weight not in _entries:
        _entries[weight] = None


def forget_(weight: Tensor) -> None:
    """Undo `register_`."""
    if weight in _entries:
        del _entries[weight]


def matrices_of(weight: Tensor) -> Matrices | None:
    """The matrices by which oneDNN multiplies with a frozen weight; None where `F.linear` is to be used.

    `F.linear` is used where it is faster, on devices other than a processor, and without gradients, so that evaluation
    equals the plain model bit for bit. Packed matrices are renewed once the weight was written to, cast, or moved.
    """
    data = weight.data
    if not torch.is_grad_enabled() or type(data) is not Tensor or data.device.type != "cpu":
        return None
    if weight not in _entries:
        pays = data.is_contiguous() and (gains(data) or gains(data.T))
        return Matrices(Matrix(data), Matrix(data.T)) if pays else None
    entry: _Entry | None = _entries[weight]
    if entry is None or not entry.is_of(weight):
        entry = _entries[weight] = _Entry.of(weight)
    return entry.matrices


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Matrix | None) -> Tensor:
    """``x W^T + bias`` in x's dtype, by the weight's matrix if there is one; for functions with their own gradient.

    Shapes: x (rows, in), weight (out, in).
    """
    return F.linear(x, weight.to(x.dtype), bias) if matrix is None else matrix.linear(x, bias)


def gains(values: Tensor, *, packed: bool = False) -> bool:
    """Whether oneDNN multiplies by this matrix, in its order in memory, faster than `F.linear` on this processor."""
    if values.dtype is not torch.float32 or values.numel() < _SMALL or not can_multiply(torch.float32):
        return False

    def ways() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        x = torch.ones(min(max(_MANY, _TRIAL // values.numel()), 512), values.shape[1])
        matrix = _pack(values) if packed else values
        return lambda: _linear(x, matrix, None), lambda: F.linear(x, values)

    way = "oneDNN, packed" if packed else "oneDNN"
    return is_faster(way, *values.shape, "in rows" if values.is_contiguous() else "in columns", ways=ways)


@cache
def can_multiply(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this processor multiplies correctly by oneDNN in ``dtype``, packed and unpacked."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    x, weight = torch.eye(4, dtype=dtype), torch.arange(12.0, dtype=dtype).view(3, 4)
    try:
        found = [_linear(x, matrix, torch.ones(3, dtype=dtype)) for matrix in (weight, _pack(weight))]
        found.append(_linear(x, weight.T.contiguous().T, torch.ones(3, dtype=dtype)))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.equal(one, weight.T + 1) for one in found)


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")
    return y


def _pack(matrix: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
    return packed
