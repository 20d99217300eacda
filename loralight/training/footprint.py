"""The memory of a training step, counted while it runs on real tensors or on shapes (`loralight.models.shapes`)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loralight.adapters.base import trainable
from loralight.training.task import AdapterTask

Precision = Callable[[], AbstractContextManager[Any]]

_PIECE = 32 * 2**20  # glibc maps larger pieces separately (M_MMAP_THRESHOLD_MAX)
_WEIGHTS = {torch.ops.aten.convolution: 1, torch.ops.aten.convolution_backward: 2}  # the argument that oneDNN copies


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a training step after the first.

    Args:
        weights: the model's parameters and buffers.
        gradients: of the trainable parameters.
        optimizer: its state.
        activations: kept by the forward pass for the backward pass, and the loss; without weights and batch.
        peak: the most bytes in memory at once.
        pieces: the part of the peak in tensors that each step allocates anew and that are small enough for an
            allocator to cut them out of larger blocks.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    pieces: int

    @property
    def working(self) -> int:
        """The rest of the peak: the batch, and short-lived values."""
        return self.peak - self.weights - self.gradients - self.optimizer - self.activations


def footprint(task: AdapterTask, optimizer: Optimizer, batch: Any, *, precision: Precision = nullcontext) -> Footprint:
    """Make a training step on a batch, as Lightning does, and count its bytes.

    Scratch memory inside kernels is not counted, except for oneDNN's copy of a convolution's weight.

    Args:
        task: in training mode.
        optimizer: over its trainable parameters.
        batch: as the task's ``step`` takes it.
        precision: the context of a forward pass.
    """
    learns = list(trainable(task.model).values())
    if not optimizer.state:
        for parameter in learns:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    weights = [*task.model.parameters(), *task.model.buffers()]
    state = tree_leaves([list(values.values()) for values in optimizer.state.values()])
    gradients = [parameter.grad for parameter in learns]
    memory = Memory()
    memory.watch([*weights, *state, *gradients, *tree_leaves(batch)])
    del gradients
    before = memory.bytes
    with memory:
        train_step(task, optimizer, batch, precision, after_forward=memory.note_after_forward)
    return Footprint(
        weights=_total(weights),
        gradients=_total(parameter.grad for parameter in learns),
        optimizer=_total(state),
        activations=memory.after_forward - before,
        peak=memory.peak,
        pieces=memory.pieces,
    )


def train_step(
    task: AdapterTask,
    optimizer: Optimizer,
    batch: Any,
    precision: Precision = nullcontext,
    *,
    clip: float | None = None,
    after_forward: Callable[[], None] = lambda: None,
) -> Tensor:
    """Make a training step, as Lightning does, with the gradient norm clipped to ``clip``; returns the loss, ()."""
    with precision(), task.accelerations.step(task.model):
        loss, penalty = task.step(batch).loss, task.adapter.penalty(task.model)
        loss = loss if penalty is None else loss + penalty
    after_forward()
    optimizer.zero_grad()  # until here the gradients of the previous step are in memory
    torch.autograd.backward(loss)
    if clip:
        nn.utils.clip_grad_norm_(trainable(task.model).values(), clip)
    optimizer.step()
    return loss.detach()


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, each from the operator that allocates it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = self.pieces = self.after_forward = 0
        self._in_pieces = 0
        self._alive: dict[int, Any] = {}

    def note_after_forward(self) -> None:
        self.after_forward = self.bytes

    def watch(self, values: Iterable[Any], *, anew: bool = False) -> None:
        for tensor in values:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                piece = size if anew and size < _PIECE else 0
                self._alive[key] = ref(storage, partial(self._forget, key, size, piece))
                self.bytes += size
                self._in_pieces += piece
                self._note_peak()

    def _forget(self, key: int, size: int, piece: int, _: Any) -> None:
        del self._alive[key]
        self.bytes -= size
        self._in_pieces -= piece

    def _note_peak(self, scratch: int = 0) -> None:
        if self.bytes + scratch > self.peak:
            self.peak, self.pieces = self.bytes + scratch, self._in_pieces

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        self.watch(tree_leaves(made), anew=True)
        if (place := _WEIGHTS.get(operator.overloadpacket)) and args[place].device.type == "cpu":
            self._note_peak(args[place].untyped_storage().nbytes())
        return made


def _total(tensors: Iterable[Any]) -> int:
    """Bytes of tensors' storages, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
