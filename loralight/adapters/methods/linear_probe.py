"""Linear probe: the head learns on the frozen model's features. The least that an adapter has to beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loralight.adapters.base import Adapter


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Adapter):
    """Train the head alone (Alain and Bengio, 2016, https://arxiv.org/abs/1610.01644).

    A linear head is solved for where ``trainer.max_epochs`` is left to loralight (`loralight.training.probe`). Any
    other head is trained, and for a number of epochs that is given.

    Args:
        lr: learning rate per step.
    """

    lr: float = 1e-3

    is_probe: ClassVar[bool] = True

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        return {}
