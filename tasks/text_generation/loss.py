"""The loss of a language model's tokens, from hidden states, without ever holding all logits.

A vocabulary of 50,000 words makes logits, their softmax and its gradient the largest tensors of a training step.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_ROWS = 128  # tokens whose logits are held at a time: fewer cost time, more cost memory


class TokenScores(NamedTuple):
    """Of each token its loss, which can be differentiated, and whether it was the model's first choice: (tokens,)."""

    losses: Tensor
    hits: Tensor


def token_scores(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> TokenScores:
    """Cross-entropy of ``softmax(weight hidden + bias)``, whose gradient is made together with the loss, by parts.

    Shapes: hidden (tokens, width), targets (tokens,), weight (vocabulary, width), bias (vocabulary,). Weight and bias
    are frozen: no gradient reaches them.
    """
    return TokenScores(*_TokenScores.apply(hidden, targets, weight, bias))


def plain_token_scores(logits: Tensor, targets: Tensor) -> TokenScores:
    """The formula that `token_scores` equals, from logits (tokens, vocabulary)."""
    losses = F.cross_entropy(logits.to(_at_least_float32(logits)), targets, reduction="none")
    return TokenScores(losses, logits.detach().argmax(-1) == targets)


def _at_least_float32(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class _TokenScores(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        differentiable = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), device=hidden.device, dtype=_at_least_float32(hidden))
        hits = torch.empty(len(targets), device=hidden.device, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if differentiable else None
        for start in range(0, len(targets), _ROWS):
            part = slice(start, start + _ROWS)
            logits = F.linear(hidden[part], weight, bias)  # (rows, vocabulary)
            hits[part] = logits.argmax(-1) == targets[part]
            place = (torch.arange(len(logits), device=logits.device), targets[part])
            log_probabilities = logits.to(losses.dtype).log_softmax(-1)
            losses[part] = -log_probabilities[place]
            if gradient is not None:
                errors = log_probabilities.exp_()  # softmax - one hot
                errors[place] -= 1
                gradient[part] = errors.to(logits.dtype) @ weight.to(logits.dtype)
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(gradient)
        return losses, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype)[:, None], None, None, None
