"""Frozen BatchNorm as a gain and a shift, which the adapted convolution before it applies; see `FrozenNorm`."""

from collections.abc import Sequence

from torch import nn

from loralight.acceleration.base import Acceleration, Facts
from loralight.acceleration.batch_norm_folding import link_, unlink_
from loralight.kernels.freezing import freeze_, thaw_


class FrozenBatchNorms(Acceleration):
    """Saves half of the activations that a ResNet with LoRA keeps for the backward pass."""

    def __init__(self) -> None:
        self._norms: Sequence[nn.Module] = ()

    def attach_(self, facts: Facts) -> str | None:
        if not facts.fixed:
            return "the model has no BatchNorm, or it learns"
        self._norms = facts.fixed
        self.switch_(facts.model.training)
        link_(facts.model)
        return None

    def switch_(self, training: bool) -> None:
        (freeze_ if training else thaw_)(self._norms)

    def detach_(self, model: nn.Module) -> None:
        unlink_(model)
