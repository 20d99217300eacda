"""transformers' RMS norms by PyTorch's kernel on a GPU (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467).

transformers computes a norm by half a dozen operations in float32 and its gradient by a dozen more, each of which keeps
its inputs: a fifth of a step of Llama 3.2 1B on an H200. On a processor a kernel of our own gained nothing in a step.
The kernel rounds its result to half precision once and not twice, so it is used only in training.
"""

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.kernels.linear import is_eager, is_on_accelerator


class FusedRMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x**2) + eps)``; a module of transformers that computes it becomes this in place.

    Its new class derives from this class and from its own, on whose other methods its own ``forward`` may rely.

    Shapes: x and the result (..., width), weight (width,).
    """

    weight: Tensor
    plain: ClassVar[type[nn.Module]]
    """The class before."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_on_accelerator(x) or x.dtype != self.weight.dtype or not is_eager():  # a compiler fuses by itself
            unchanged: Tensor = super().forward(x)
            return unchanged
        return F.rms_norm(x, self.weight.shape, self.weight, _eps_of(self))

    def __reduce__(self) -> Any:
        return _blank, (self.plain,), self.__dict__


def fusible(model: nn.Module) -> list[nn.Module]:
    """The norms that `set_fused_` may replace. One of each class is tried, as some classes add 1 to their weight."""
    norms = [module for module in model.modules() if _has_the_form(module)]
    fits = {kind: _computes_the_same(norm) for kind, norm in {type(norm): norm for norm in norms}.items()}
    return [norm for norm in norms if fits[type(norm)]]


def set_fused_(norms: Iterable[Any], on: bool) -> None:
    """Turn the norms that `fusible` found into `FusedRMSNorm`, in place, or turn them back."""
    for norm in norms:
        if on and not isinstance(norm, FusedRMSNorm):
            plain: Any = type(norm)
            norm.__class__ = _kind(plain)
        elif isinstance(norm, FusedRMSNorm) and not on:
            norm.__class__ = norm.plain  # type: ignore[assignment]  # the way back


@cache
def _kind(plain: Any) -> Any:
    return type(f"Fused{plain.__name__}", (FusedRMSNorm, plain), {"plain": plain, "__module__": plain.__module__})


def _blank(plain: Any) -> nn.Module:
    kind = _kind(plain)
    return kind.__new__(kind)  # type: ignore[no-any-return]


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is an RMS norm by its class's name: each of transformers' models has its own class."""
    return type(module).__name__.endswith("RMSNorm")


def _eps_of(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))  # transformers has both names


def _has_the_form(module: nn.Module) -> bool:
    named = dict(module.named_parameters())
    return is_rms_norm(module) and named.keys() == {"weight"} and named["weight"].ndim == 1 and bool(_eps_of(module))


@torch.no_grad()
def _computes_the_same(norm: nn.Module) -> bool:
    """Whether a copy of ``norm``, with our own numbers as its weight, computes the formula."""
    probe = copy.copy(norm)
    x = torch.arange(24, dtype=torch.float32).cos().view(3, 8)  # real numbers, also if the model has only shapes
    weight = x[0] + 2
    probe._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    try:
        return torch.allclose(probe(x), F.rms_norm(x, weight.shape, weight, _eps_of(norm)))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):  # it needs more arguments
        return False
