"""Frozen BatchNorm in training: a gain and a shift of each channel that never change, so that no input is kept.

PyTorch's own keeps it for a gradient that nobody asks for: half of what a ResNet keeps in LoRA's step. It rounds
otherwise, by a last bit, so it is there in training alone.
"""

from collections.abc import Iterable

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


class FrozenNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm in evaluation mode that multiplies and adds, or adds nothing to what a convolution has done for it.

    A plain layer becomes one in place.

    Shapes: x and the result (batch, channels, *space).
    """

    done: Tensor | None = None
    """The output of the convolution before, which was convolved with this layer's gain and has its shift."""

    source: nn.Module | None = None
    """The convolution whose output nothing but this layer reads, if that is known; no submodule of this one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.done is not None:
            assert x is self.done, "the convolution's output has gone elsewhere"
            self.done = None
            return self.after(x)
        in_place = not (x.requires_grad or self.source is None or output_is_watched(self.source) or is_watched(self))
        if not (x.requires_grad or in_place) or not self.is_fixed_for(x.dtype):
            y: Tensor = super().forward(x)
            return y
        gain, shift = (one.view(-1, *(1,) * (x.ndim - 2)) for one in self.gain_and_shift())
        return self.after(torch.addcmul(shift, x, gain, out=x if in_place else None))

    def is_fixed_for(self, dtype: torch.dtype) -> bool:
        """Whether the layer is a constant gain and shift of that precision."""
        return (
            not self.training
            and torch.is_grad_enabled()
            and self.running_var is not None
            and self.running_var.dtype == dtype
            and not any(parameter.requires_grad for parameter in self.parameters(recurse=False))
            and not torch.compiler.is_compiling()
        )

    def gain_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer's factor and its summand, each (channels,)."""
        assert self.running_mean is not None and self.running_var is not None
        gain = torch.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            gain = gain * self.weight
        shift = -gain * self.running_mean
        return gain, shift if self.bias is None else shift + self.bias

    def after(self, x: Tensor) -> Tensor:
        """The layer's output for inputs that are normalised already."""
        return x


class FrozenBatchNorm1d(FrozenNorm, nn.BatchNorm1d):
    """See `FrozenNorm`."""


class FrozenBatchNorm2d(FrozenNorm, nn.BatchNorm2d):
    """See `FrozenNorm`."""


class FrozenBatchNorm3d(FrozenNorm, nn.BatchNorm3d):
    """See `FrozenNorm`."""


class FrozenBatchNormAct2d(FrozenNorm, BatchNormAct2d):
    """timm's, which has an activation in it. See `FrozenNorm`."""

    def after(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(x))
        return y


FROZEN: dict[type[nn.Module], type[FrozenNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    BatchNormAct2d: FrozenBatchNormAct2d,
}
"""The replacement of each class; exact classes, as a subclass may compute something else."""

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {frozen: plain for plain, frozen in FROZEN.items()}


def freeze_(norms: Iterable[nn.Module]) -> None:
    """Make those that can be a `FrozenNorm` one."""
    for norm in norms:
        norm.__class__ = FROZEN.get(type(norm), type(norm))


def thaw_(norms: Iterable[nn.Module]) -> None:
    """Undo `freeze_`."""
    for norm in norms:
        norm.__class__ = _PLAIN.get(type(norm), type(norm))
        vars(norm).pop("done", None)


class Follower:
    """Where the BatchNorm is that alone reads a convolution's output.

    It is looked up at each use: something else may have taken its place.
    """

    def __init__(self, *, parent: nn.Module, name: str) -> None:
        self.parent, self.name = parent, name

    def of(self, convolution: nn.Module, dtype: torch.dtype) -> FrozenNorm | None:
        """The layer, if nobody would see that ``convolution``, whose weight is of ``dtype``, does its work."""
        norm = self.parent._modules.get(self.name)
        if not isinstance(norm, FrozenNorm) or not norm.is_fixed_for(dtype):
            return None
        return None if output_is_watched(convolution) or is_watched(norm) else norm


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see a module's inputs or outputs."""
    return bool(module._forward_pre_hooks) or output_is_watched(module)


def output_is_watched(module: nn.Module) -> bool:
    """Whether hooks see a module's outputs or their gradients."""
    hooks = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
