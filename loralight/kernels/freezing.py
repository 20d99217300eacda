"""Frozen BatchNorm layers in place of plain ones, and back; see `loralight.kernels.batch_norm`."""

import sys
from collections.abc import Iterable, Mapping

from torch import nn

from loralight.kernels.batch_norm import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d, FrozenNorm

_TORCHS: dict[type[nn.Module], type[FrozenNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}


def frozen_kinds() -> Mapping[type[nn.Module], type[FrozenNorm]]:
    """The replacement of each class; exact classes, as a subclass may compute something else."""
    if "timm.layers.norm_act" not in sys.modules:  # then no layer is timm's
        return _TORCHS
    from loralight.kernels.timm_batch_norm import KINDS

    return {**_TORCHS, **KINDS}


def freeze_(norms: Iterable[nn.Module]) -> None:
    """Turn the layers that have a `FrozenNorm` counterpart into it, in place."""
    kinds = frozen_kinds()
    for norm in norms:
        norm.__class__ = kinds.get(type(norm), type(norm))


def thaw_(norms: Iterable[nn.Module]) -> None:
    """Undo `freeze_`."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {frozen: plain for plain, frozen in frozen_kinds().items()}
    for norm in norms:
        norm.__class__ = kinds.get(type(norm), type(norm))
