"""Frozen BatchNorm in training: a constant gain and shift of each channel, so that no input is kept.

PyTorch's own keeps its input for a gradient that nobody needs: half of the memory that a ResNet keeps in LoRA's step.
The frozen form rounds differently, by a last bit, so it is used only in training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True, eq=False)
class Place:
    """Where a module was found; a wrapper may have taken its place since.

    Args:
        parent: the module that holds it.
        name: its name in the parent.
        module: the module itself.
    """

    parent: nn.Module
    name: str
    module: nn.Module

    @property
    def is_kept(self) -> bool:
        """Whether the module is still there."""
        return self.parent._modules.get(self.name) is self.module


_NOTHING = torch.empty(0, device="meta")


class Unread(Tensor):
    """The output of a convolution, computed when it is read.

    The BatchNorm behind the convolution has it compute the normalised output at once. Any other reader, through any
    operator or attribute of a tensor, has the plain output computed, which the BatchNorm then normalises by itself.
    """

    _convolve: Callable[[tuple[Tensor, Tensor] | None], Tensor]
    _norm: "FrozenNorm"
    _autocast: torch.autocast
    _output: Tensor | None

    @staticmethod
    def of(
        convolve: Callable[[tuple[Tensor, Tensor] | None], Tensor], norm: "FrozenNorm", device: torch.device
    ) -> "Unread":
        """The output of a convolution.

        Args:
            convolve: computes the output with a gain and a shift, each (channels,), or given None the plain output.
            norm: the BatchNorm behind the convolution.
            device: of the output.
        """
        unread = Tensor._make_subclass(Unread, _NOTHING)
        unread._convolve, unread._norm, unread._output = convolve, norm, None
        dtype, enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        unread._autocast = torch.autocast(device.type, dtype=dtype, enabled=enabled)
        return unread

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Unread, Unread.read, (tuple(args), kwargs or {}))
        return func(*args, **kwargs)

    def read(self) -> Tensor:
        """The plain output."""
        if self._output is None:
            self._output = self._compute(None)
        return self._output

    def normalised_by(self, norm: "FrozenNorm") -> Tensor | None:
        """The normalised output; None for another layer, or if the plain output was read before."""
        is_fixed = not norm.training and torch.is_grad_enabled()
        if norm is not self._norm or self._output is not None or not is_fixed:
            return None
        return self._compute(norm.gain_and_shift())

    def _compute(self, folded: tuple[Tensor, Tensor] | None) -> Tensor:
        with torch.enable_grad(), self._autocast:  # as where the convolution was called
            return self._convolve(folded)


class FrozenNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm in evaluation mode as one multiplication and addition, which a convolution before it may have done.

    A plain layer becomes a frozen one in place.

    Shapes: x and the result (batch, channels, *space).
    """

    source: Place | None = None
    """The convolution whose output only this layer reads, if that is known."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Unread):
            if (y := x.normalised_by(self)) is not None:
                return self.after(y)
            x = x.read()
        in_place = not (x.requires_grad or is_watched(self)) and self._alone_reads_its_input()
        if not (x.requires_grad or in_place) or not self.is_fixed_for(x.dtype):
            y = super().forward(x)
            return y
        gain, shift = (one.view(-1, *(1,) * (x.ndim - 2)) for one in self.gain_and_shift())
        return self.after(torch.addcmul(shift, x, gain, out=x if in_place else None))

    def _alone_reads_its_input(self) -> bool:
        return self.source is not None and self.source.is_kept and not output_is_watched(self.source.module)

    def is_fixed_for(self, dtype: torch.dtype) -> bool:
        """Whether the layer is a constant gain and shift in this dtype."""
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
        """The layer's output for inputs that are already normalised."""
        return x


class FrozenBatchNorm1d(FrozenNorm, nn.BatchNorm1d):
    """See `FrozenNorm`."""


class FrozenBatchNorm2d(FrozenNorm, nn.BatchNorm2d):
    """See `FrozenNorm`."""


class FrozenBatchNorm3d(FrozenNorm, nn.BatchNorm3d):
    """See `FrozenNorm`."""


@dataclass(frozen=True, eq=False)
class Follower:
    """A convolution and the BatchNorm that is the only reader of its output."""

    convolution: Place
    norm: Place

    def of(self, convolution: nn.Module, dtype: torch.dtype) -> FrozenNorm | None:
        """The BatchNorm, if ``convolution``, whose weight is of ``dtype``, can apply its gain and shift."""
        norm = self.norm.module
        if not (convolution is self.convolution.module and self.convolution.is_kept and self.norm.is_kept):
            return None
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
