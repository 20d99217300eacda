"""Having all frozen matrix products of a model read packed weights in training; what that is: `packing`."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loralight.adapters.kernels import in_autocast, is_eager
from loralight.adapters.lora_layers import LoraProduct
from loralight.adapters.packing import Packs, can_pack, forget_, multiply, packs_of, register_
from loralight.errors import InputError


class PackedLayer(nn.Module):
    """A frozen matrix product without an adapter: the plain layer in all it computes."""

    plain: ClassVar[type[nn.Module]]
    weight_is_transposed: ClassVar[bool] = False

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        packs = None if learns or not is_eager() else packs_of(self.weight)
        if packs is None:
            y: Tensor = super().forward(x)  # of the plain layer, which comes next in every subclass
            return y
        weight = self.weight
        if self.weight_is_transposed:
            packs, weight = packs.T, weight.T
        return frozen_linear(x, weight, self.bias, packs)


class PackedLinear(PackedLayer, nn.Linear):
    """See `PackedLayer`."""

    plain = nn.Linear


class PackedConv1D(PackedLayer, Conv1D):
    """GPT-2's linear layer, whose weight is (in, out); see `PackedLayer`."""

    plain = Conv1D
    weight_is_transposed = True


_KINDS: dict[type[nn.Module], type[PackedLayer]] = {layer.plain: layer for layer in (PackedLinear, PackedConv1D)}


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packs: Packs | None) -> Tensor:
    """``W x + b``, of which x alone can learn: x (..., in), weight (out, in)."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, bias = in_autocast(x, bias)
        with torch.autocast(device, enabled=False):
            return frozen_linear(x, weight, bias, packs)
    y: Tensor = _FrozenLinear.apply(x, weight, bias, packs)
    return y


class _FrozenLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packs: Packs | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.packs, ctx.shape = packs, x.shape
        y = multiply(x.reshape(-1, x.shape[-1]), weight, bias, packs and packs.matrix)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        return multiply(g, weight.T, None, ctx.packs and ctx.packs.transposed).view(ctx.shape), None, None, None


def prepack_(model: nn.Module) -> None:
    """Have the frozen linear layers of ``model`` read packed weights in training; nothing is packed before they do.

    Raises:
        InputError: there is none, it is not on a processor, or PyTorch cannot pack its weight (``E-PREPACK``).
    """
    layers = [module for module in model.modules() if type(module) in _KINDS or isinstance(module, LoraProduct)]
    # over a vocabulary there is more to save than a product, and its packs would be the largest
    ends = [part.get_output_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel)]  # type: ignore[no-untyped-call]
    layers = [layer for layer in layers if not layer.weight.requires_grad and not any(layer is end for end in ends)]
    if not layers:
        raise InputError("E-PREPACK", f"{type(model).__name__} has no frozen linear layer; set task.prepack=false")
    for weight in (layer.weight for layer in layers):
        if weight.device.type != "cpu" or not can_pack(weight.dtype):
            where = f"{str(weight.dtype).removeprefix('torch.')} weights on {weight.device.type}"
            raise InputError(
                "E-PREPACK",
                f"weights are packed by PyTorch's oneDNN, on a processor, in float32 and perhaps bfloat16; here are "
                f"{where}: set task.prepack=false",
            )
    for layer in layers:
        register_(layer.weight)  # type: ignore[arg-type]
        layer.__class__ = _KINDS.get(type(layer), type(layer))


def unpack_(model: nn.Module) -> None:
    """Undo `prepack_`."""
    for module in model.modules():
        if isinstance(module, PackedLayer | LoraProduct):
            forget_(module.weight)
        if isinstance(module, PackedLayer):
            module.__class__ = module.plain  # type: ignore[assignment]  # the way back from `prepack_`
