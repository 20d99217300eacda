"""Running a model on the shapes of its tensors alone: no weights, no numbers, no memory.

Results from floating-point numbers are `FakeTensor`s: shape, dtype and device. Integers and booleans (a batch's
tokens, masks and positions) stay real, so all that depends on them is as in training, such as how many tokens are
learnt and whether a batch has padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)

_EMPTY = {_aten.empty, _aten.empty_strided, _aten.empty_permuted, _aten.rand, _aten.randn, _aten.randint}
_FILLED = {_aten.zeros, _aten.ones, _aten.full, _aten.eye}
_TESTS = {_aten.allclose, _aten.equal, _aten.is_nonzero}


def without_weights() -> bool:
    """Whether models are to be built without reading their weights."""
    return _WITHOUT_WEIGHTS.get()


@contextmanager
def leaving_out_weights() -> Iterator[None]:
    """A context in which `without_weights` holds."""
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


@contextmanager
def shapes_only() -> Iterator["Shapes"]:
    """A context in which models are built and run without weights, see `Shapes`."""
    with leaving_out_weights(), Shapes() as shapes:
        yield shapes


class Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes floating-point tensors fake, and all results that depend on a fake tensor.

    A number read from a fake tensor is 1, a comparison of two tensors holds, and a fake mask chooses every element.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = _Fake(allow_non_fake_inputs=True)

    def without_numbers(self, tensor: Tensor) -> Tensor:
        """The tensor itself, or a fake tensor like it if it holds floating-point numbers."""
        return self.fake.from_tensor(tensor) if tensor.is_floating_point() else tensor

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return self._run(operator, args, kwargs or {})
        finally:  # the mode keeps weak references to tensors, and a module cannot cast a tensor that has any
            self.fake.fake_tensor_converter.tensor_memo.clear()

    def _run(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            return self._of_fake(operator, args, kwargs)
        if not given and _makes_fake(operator.overloadpacket, args, kwargs):
            with self.fake:
                return operator(*args, **kwargs)
        return operator(*args, **kwargs)

    def _of_fake(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        packet = operator.overloadpacket
        if packet in _TESTS:
            return True
        if packet is _aten._local_scalar_dense:
            return torch.ones((), dtype=args[0].dtype).item()
        if packet is _aten.nonzero:
            return self._everywhere(args[0])
        if packet in (_aten.index, _aten.index_put, _aten.index_put_):
            args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
        if operator._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], FakeTensor):
            return args[0]  # its new values are not known
        with self.fake:
            return operator(*args, **kwargs)

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """An index of whole numbers that chooses the same elements."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        found = self._everywhere(index) if isinstance(index, FakeTensor) else index.nonzero()
        return list(found.unbind(1))

    def _everywhere(self, mask: Tensor) -> Tensor:
        with self.fake:
            return torch.empty(mask.numel(), mask.ndim, dtype=torch.int64, device=mask.device)


class _Fake(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Looks for a GPU once; torch does so for each operator, and without a GPU opens NVIDIA's library each time."""

    @cached_property
    def avoid_device_init(self) -> bool:
        return super().avoid_device_init


def _makes_fake(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator creates a tensor whose values nobody needs."""
    if packet in _EMPTY:
        return args[0] not in ([0], (0,))  # not of size 0: torch makes such a tensor to copy storages
    if packet not in _FILLED:
        return False
    dtype = kwargs.get("dtype")
    if dtype is None:
        dtype = torch.get_default_dtype() if packet is not _aten.full else torch.tensor(args[1]).dtype
    return bool(dtype.is_floating_point)
