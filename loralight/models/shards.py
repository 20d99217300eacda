"""Tensors of which each process holds a part (``trainer=fsdp``): the part, the whole, and a part of a given whole."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the model's weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which may be empty; a tensor that is not sharded, as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes call this, for the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_in_first(tensor: Tensor, rank: int) -> Tensor:
    """The whole tensor in the memory of the first process's machine, an empty one elsewhere; see `whole`."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = whole(tensor.detach())
    return gathered.cpu() if rank == 0 else gathered.new_empty(0, device="cpu")


def sharded_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as ``like`` is; every process has the same ``tensor``."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def summed_norms(norms: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """The 2-norms of whole tensors, from those of this process's parts of them; one message for all.

    Args:
        norms: (tensors,).
        tensors: of which some may be missing; all are sharded, or none is.
    """
    sharded = next((tensor for tensor in tensors if isinstance(tensor, DTensor)), None)
    if sharded is None:
        return norms
    squares = norms.double().square()  # a small norm has a square of 0 in float32
    dist.all_reduce(squares, group=sharded.device_mesh.get_group())
    return squares.sqrt().to(norms.dtype)


def inference_on(model: nn.Module) -> AbstractContextManager[None]:
    """A context for a model's predictions: weights gathered in inference mode could not be used in training."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
