"""A model's frozen linear layers multiply by oneDNN in training where that is faster: `loralight.kernels.onednn`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loralight.acceleration.base import Acceleration, Facts
from loralight.adapters.layers.lora import LoraProduct
from loralight.errors import InputError
from loralight.kernels.linear import in_autocast, is_eager
from loralight.kernels.onednn import Matrices, can_multiply, forget_, gains, matrices_of, multiply, register_


class FrozenProducts(Acceleration):
    """oneDNN's products with frozen weights, on a processor.

    Args:
        prepack: whether weights are also kept in oneDNN's own order; this is somewhat faster and takes the memory of
            two more copies.
    """

    def __init__(self, *, prepack: bool = False) -> None:
        self._prepack = prepack

    def start_(self, facts: Facts) -> str | None:
        layers = _frozen_layers(facts.model)
        if self._prepack:
            _check_packing(facts.model, layers)
        if not any(_gains(layer.weight, packed=self._prepack) for layer in layers):
            return "F.linear is as fast for these layers on this processor, by a trial"
        (prepack_ if self._prepack else multiply_by_onednn_)(facts.model)
        return None

    def detach_(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FrozenLayer):
                module.merge_()


class FrozenLayer(nn.Module):
    """A frozen matrix product without an adapter; it computes the same as the plain layer."""

    plain: ClassVar[type[nn.Module]]
    weight_is_transposed: ClassVar[bool] = False

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        matrices = matrices_of(self.weight) if self._is_frozen and is_eager() and x.numel() else None
        fits = torch.is_autocast_enabled(x.device.type) or x.dtype == self.weight.dtype
        if matrices is None or not fits:
            y: Tensor = super().forward(x)  # the plain layer's, which comes next in every subclass
            return y
        weight = self.weight
        if self.weight_is_transposed:
            matrices, weight = matrices.T, weight.T
        return frozen_linear(x, weight, self.bias, matrices)

    def merge_(self) -> None:
        """Become the plain layer again; there is no update to add to its weight."""
        forget_(self.weight)
        self.__class__ = self.plain  # type: ignore[assignment]  # the way back

    @property
    def _is_frozen(self) -> bool:
        return not (self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad))


class FrozenLinear(FrozenLayer, nn.Linear):
    """See `FrozenLayer`."""

    plain = nn.Linear


class FrozenConv1D(FrozenLayer, Conv1D):
    """GPT-2's linear layer, whose weight is (in, out); see `FrozenLayer`."""

    plain = Conv1D
    weight_is_transposed = True


_KINDS: dict[type[nn.Module], type[FrozenLayer]] = {layer.plain: layer for layer in (FrozenLinear, FrozenConv1D)}


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, matrices: Matrices | None) -> Tensor:
    """``W x + b``, where only x can need a gradient: x (..., in), weight (out, in)."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, bias = in_autocast(x, bias)
        with torch.autocast(device, enabled=False):
            return frozen_linear(x, weight, bias, matrices)
    y: Tensor = _FrozenLinear.apply(x, weight, bias, matrices)
    return y.view(*x.shape[:-1], -1)  # as in `lora_linear`


class _FrozenLinear(Function):
    """The result is (tokens, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, matrices: Matrices | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.matrices, ctx.shape = matrices, x.shape
        return multiply(x.reshape(-1, x.shape[-1]), weight, bias, matrices and matrices.weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g_x = _FrozenLinear.apply(gradient, weight.T, None, ctx.matrices and ctx.matrices.T)
        return g_x.view(ctx.shape), None, None, None


def multiply_by_onednn_(model: nn.Module) -> None:
    """Have the frozen linear layers of ``model`` multiply by oneDNN in training, where oneDNN is available."""
    for layer in _frozen_layers(model):
        layer.__class__ = _KINDS.get(type(layer), type(layer))


def prepack_(model: nn.Module) -> None:
    """Have the frozen linear layers of ``model`` read packed weights in training; a weight is packed at its first use.

    Raises:
        InputError: the model has no such layer, or one that is not on a processor or whose weight PyTorch cannot pack
            (``E-PREPACK``).
    """
    layers = _frozen_layers(model)
    _check_packing(model, layers)
    for layer in layers:
        register_(layer.weight)
    multiply_by_onednn_(model)


def _check_packing(model: nn.Module, layers: Sequence[Any]) -> None:
    if not layers:
        raise InputError(
            "E-PREPACK",
            f"{type(model).__name__} has no frozen linear layer; set acceleration.frozen_products.prepack=false",
        )
    for weight in (layer.weight for layer in layers):
        if weight.device.type != "cpu" or not can_multiply(weight.dtype):
            where = f"{str(weight.dtype).removeprefix('torch.')} weights on {weight.device.type}"
            raise InputError(
                "E-PREPACK",
                f"weights are packed by PyTorch's oneDNN, on a processor, in float32 and perhaps bfloat16; here are "
                f"{where}: set acceleration.frozen_products.prepack=false",
            )


def _gains(weight: Tensor, *, packed: bool) -> bool:
    """Whether oneDNN is faster in one of both directions; packed products in half precision save casts."""
    if weight.device.type != "cpu":
        return False
    half = packed and weight.dtype is torch.bfloat16
    return half or gains(weight.data, packed=packed) or gains(weight.data.T, packed=packed)


def _frozen_layers(model: nn.Module) -> list[Any]:
    """Frozen linear layers, with an adapter or without, except output layers: a vocabulary's can save more."""
    layers: Any = [m for m in model.modules() if isinstance(m, LoraProduct | FrozenLayer) or type(m) in _KINDS]
    ends = [part.get_output_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel)]  # type: ignore[no-untyped-call]
    return [layer for layer in layers if not layer.weight.requires_grad and not any(layer is end for end in ends)]
