"""LoRA on PyTorch's own attention and encoder layers, whose fused kernels read weights and call no submodule."""

from contextvars import ContextVar
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from loralight.adapters.disabled import is_off
from loralight.adapters.layers.lora import LoraLinear, wide
from loralight.adapters.layers.parameters import LoraParameters, LowRank, read_once, read_with_
from loralight.adapters.layers.slices import SLICES

_CALLED: ContextVar[nn.Module | None] = ContextVar("called", default=None)  # the layer that this thread is in


class LoraAttention(LoraParameters, nn.MultiheadAttention):
    """Multi-head attention whose projections of queries, keys, values and the output have updates.

    Each of the four projections has its own A and B, also where the first three are packed in one weight.

    Shapes: lora_A (n, rank, in), lora_B (n, embed_dim, rank) for n slices of the packed weight, else (rank, in) and
    (embed_dim, rank).
    """

    plain = nn.MultiheadAttention

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, slices: str = "qkvo", dropout: float = 0.0) -> Self:
        """Give the projections named in ``slices`` (o: the output's) their updates; ``dropout`` must be 0."""
        assert isinstance(layer, nn.MultiheadAttention) and not dropout
        inputs = "".join(name for name in SLICES if name in slices)
        if "o" in slices:
            update = LowRank(layer.out_proj.weight, rank=rank, alpha=alpha)
            read_with_(_OutputProjection, layer.out_proj, {"weight": update})
        if layer.in_proj_weight is None:
            weights = {name: getattr(layer, name) for name in (f"{letter}_proj_weight" for letter in inputs)}
            updates = {name: LowRank(weight, rank=rank, alpha=alpha) for name, weight in weights.items()}
        elif inputs:
            updates = {"in_proj_weight": _Packed(layer.in_proj_weight, slices=inputs, rank=rank, alpha=alpha)}
        else:
            updates = {}
        read_with_(cls, layer, updates)
        assert isinstance(layer, cls)
        return layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with read_once(self.out_proj):
            return super().forward(*args, **kwargs)

    def merge_(self) -> None:
        if isinstance(self.out_proj, LoraParameters):
            self.out_proj.merge_()
        super().merge_()


class _OutputProjection(LoraParameters, NonDynamicallyQuantizableLinear):
    """The output projection of `nn.MultiheadAttention`, which reads the projection's weight but never calls it."""

    plain = NonDynamicallyQuantizableLinear


class _Packed(LowRank):
    """Updates of some of the three matrices that are stacked in one weight."""

    def __init__(self, weight: Tensor, *, slices: str, **settings: Any) -> None:
        super().__init__(weight.view(len(SLICES), -1, weight.shape[1])[: len(slices)], **settings)
        self.slices = slices

    def update(self) -> Tensor:
        parts = dict(zip(self.slices, super().update(), strict=True))
        empty = torch.zeros_like(parts[self.slices[0]])
        return torch.cat([parts.get(name, empty) for name in SLICES])


class LoraEncoderLinear(LoraLinear):
    """A linear layer of `nn.TransformerEncoderLayer`, whose fused kernel takes the weight and never calls the layer.

    So to other code the weight reads as ``W + (alpha / rank) B A``; the layer itself, if it is called, adds ``B A x``.
    """

    has_peft_form = True

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        if name != "weight" or is_off(self) or (not torch.compiler.is_compiling() and _CALLED.get() is self):
            return value
        a, b = (factor.to(wide(value.dtype)) for factor in self.update_factors())
        return (value.to(a.dtype) + self.scaling * (b @ a)).to(value.dtype)

    def adapted_forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            y = F.linear(x, self._parameters["weight"], self.bias)  # type: ignore[arg-type]  # it is there
            return y + self.update(F.dropout(x, self.lora_dropout, self.training)) * self.scaling
        token = _CALLED.set(self)
        try:
            return super().adapted_forward(x)
        finally:
            _CALLED.reset(token)

    def merge_(self) -> None:
        self.__class__ = LoraLinear  # type: ignore[assignment]  # its class before `show_weights_`
        self.merge_()


def show_weights_(model: nn.Module) -> None:
    """Let PyTorch's encoder layers see the updates of their linear layers even if they do not call these layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            for part in (module.linear1, module.linear2):
                if type(part) is LoraLinear:
                    part.__class__ = LoraEncoderLinear
