"""transformers' RMS norms by one kernel, see `loralight.kernels.rms_norm`."""

from torch import nn

from loralight.acceleration.base import Acceleration, Facts
from loralight.kernels.rms_norm import fusible, set_fused_


class FusedRMSNorms(Acceleration):
    """One kernel of PyTorch in place of half a dozen operations, on a GPU in training."""

    needs_whole_weights = False

    def __init__(self) -> None:
        self._norms: list[nn.Module] = []

    def attach_(self, facts: Facts) -> str | None:
        self._norms = fusible(facts.model)
        return None if self._norms else "the model has no RMS norm of the known form"

    def switch_(self, training: bool) -> None:
        set_fused_(self._norms, training)
