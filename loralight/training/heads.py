"""The start and the learning rate of a head, which depend on its structure."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from loralight.training.optim import check_rate, check_weight_decay

LINEAR_HEAD_LR = 1e-2  # docs/recipes.md


def linear_layer(head: Iterable[nn.Module]) -> nn.Linear | None:
    """The head's only layer with parameters, if it is linear; else None."""
    owners = {
        id(module): module
        for part in head
        for module in part.modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    match list(owners.values()):
        case [nn.Linear() as layer]:
            return layer
    return None


def head_rate(given: float | str | None, head: Iterable[nn.Module]) -> float | None:
    """The head's learning rate; None for the optimizer's.

    Args:
        given: a rate, None, or ``auto``. ``auto`` gives a linear layer a higher rate: it starts from random weights on
            features that are good already, and at LoRA's rate a run has too few steps for it.
        head: the parts of the head.
    """
    if not isinstance(given, str):
        return given
    return LINEAR_HEAD_LR if linear_layer(head) is not None else None


@torch.no_grad()
def start_bias_(model: nn.Module, head: Iterable[nn.Module], *, fresh: Container[str], answer: Tensor | None) -> None:
    """Start the bias of a new output layer at an answer, as section 3.3 of https://arxiv.org/abs/1708.02002 does.

    The output layer is the head's last linear layer with so many outputs. A bias that was loaded stays, and so does a
    model without such a layer.

    Args:
        model: holds the head.
        head: its parts.
        fresh: names of the model's new parameters.
        answer: logits (outputs,); with None, nothing is done.
    """
    if answer is None:
        return
    new = {id(parameter) for name, parameter in model.named_parameters() if name in fresh}
    layers = [module for part in head for module in part.modules() if isinstance(module, nn.Linear)]
    biases = [layer.bias for layer in layers if layer.bias is not None and layer.out_features == len(answer)]
    if biases and id(biases[-1]) in new:
        biases[-1].copy_(answer)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The start, learning rate and weight decay of a head; see `AdapterTask`.

    Raises:
        InputError: the learning rate is not valid (``E-LR``), or the weight decay is not valid (``E-OPTIMIZER``).
    """

    start: Literal["random", "probe"]
    lr: float | Literal["auto"] | None
    weight_decay: float | None

    def __post_init__(self) -> None:
        if isinstance(self.lr, int | float):
            check_rate("task.head_lr", self.lr)
        if self.weight_decay is not None:
            check_weight_decay("task.head_weight_decay", self.weight_decay)
