"""Linear probe: only the head is trained, on the frozen model's features. It is the baseline an adapter must beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loralight.adapters.base import Adapter


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Adapter):
    """Train only the head (Alain and Bengio, 2016, https://arxiv.org/abs/1610.01644).

    A linear head is solved for directly if ``trainer.max_epochs`` is left to loralight (`loralight.training.probe`). If
    a number of epochs is given, or the head is another one, the head is trained.

    Args:
        lr: learning rate per step.
    """

    lr: float = 1e-3

    is_probe: ClassVar[bool] = True

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        return {}
