"""The loss of a language model's tokens, from hidden states, without ever holding all logits.

A vocabulary of 50,000 words makes logits, their softmax and its gradient the largest tensors of a training step.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from loralight.kernels.onednn import Matrices, matrices_of, multiply

_ROWS = 128  # tokens whose logits are held at a time: fewer cost time, more cost memory
_ROWS_ON_GPU = 256  # of 8,160 tokens and 128,256 words: 23 ms and 0.4 GB on an H200; with 2,048, 21 ms and 2.7 GB
_ROWS_IN_CACHE = 8  # tokens whose logits stay in a processor's cache from the first operation to the last


class TokenScores(NamedTuple):
    """Each token's loss, which can be differentiated, and whether it was the model's first choice; both (tokens,)."""

    losses: Tensor
    hits: Tensor


def token_scores(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> TokenScores:
    """Cross-entropy of ``softmax(weight hidden + bias)``; its gradient is computed together with the loss, in parts.

    Shapes: hidden (tokens, width), targets (tokens,), weight (vocabulary, width), bias (vocabulary,). Weight and bias
    are frozen: no gradient reaches them.
    """
    return TokenScores(*_TokenScores.apply(hidden, targets, weight, bias, matrices_of(weight)))


def plain_token_scores(logits: Tensor, targets: Tensor) -> TokenScores:
    """The formula that `token_scores` equals, from logits (tokens, vocabulary)."""
    losses = F.cross_entropy(logits.to(_at_least_float32(logits)), targets, reduction="none")
    return TokenScores(losses, logits.detach().argmax(-1) == targets)


def _at_least_float32(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class _TokenScores(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, matrices: Matrices | None
    ) -> tuple[Tensor, Tensor]:
        differentiable = ctx.needs_input_grad[0]
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        losses = torch.empty(len(targets), device=hidden.device, dtype=_at_least_float32(hidden))
        hits = torch.empty(len(targets), device=hidden.device, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if differentiable else None
        if matrices is not None and not matrices.weight.values.dtype == hidden.dtype == dtype:
            matrices = None
        size = _ROWS if device in ("cpu", "meta") else _ROWS_ON_GPU
        room = weight.new_empty(min(size, len(targets)) if matrices is None else 0, len(weight))
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            if matrices is not None:
                logits = matrices.weight.linear(hidden[part], bias)
            else:  # written over and over: fresh memory costs time
                logits = _write(room[: len(targets[part])], hidden[part].to(dtype), weight, bias)
            _score_(logits, targets[part], losses[part], hits[part])
            if gradient is not None:
                gradient[part] = multiply(logits, weight.T, None, matrices and matrices.transposed)
            del logits  # before the next ones are allocated
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(gradient)
        return losses, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype)[:, None], None, None, None, None


def _write(logits: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = (
        torch.mm(hidden, weight.T, out=logits) if bias is None else torch.addmm(bias, hidden, weight.T, out=logits)
    )
    return product


def _score_(logits: Tensor, targets: Tensor, losses: Tensor, hits: Tensor) -> None:
    """Write losses and hits, and overwrite the logits with their gradient: the softmax, less 1 at the target."""
    rows = _ROWS_IN_CACHE if logits.device.type == "cpu" else len(logits)
    for part, wanted, loss, hit in zip(
        *(torch.split(tensor, rows) for tensor in (logits, targets, losses, hits)), strict=True
    ):
        best, wanted = part.argmax(-1, keepdim=True), wanted[:, None]
        lead = part.gather(-1, best).to(loss.dtype) - part.gather(-1, wanted).to(loss.dtype)
        errors = part.softmax(-1, dtype=loss.dtype)
        loss.copy_((lead - errors.gather(-1, best).log()).squeeze(-1))
        hit.copy_((best == wanted).squeeze(-1))
        part.copy_(errors.scatter_add_(-1, wanted, -torch.ones_like(lead)))
