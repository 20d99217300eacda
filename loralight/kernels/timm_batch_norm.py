"""timm's BatchNorm when it is frozen; a module of its own, as timm takes seconds to import."""

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from loralight.kernels.batch_norm import FrozenNorm


class FrozenBatchNormAct2d(FrozenNorm, BatchNormAct2d):
    """timm's BatchNorm, which includes an activation; see `FrozenNorm`."""

    def after(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(x))
        return y


KINDS: dict[type[nn.Module], type[FrozenNorm]] = {BatchNormAct2d: FrozenBatchNormAct2d}
