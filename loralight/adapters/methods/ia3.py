"""(IA)3: Liu et al., 2022, https://arxiv.org/abs/2205.05638."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.base import Adapter
from loralight.adapters.disabled import Switchable, is_off
from loralight.adapters.peft.config import targeting
from loralight.errors import InputError
from loralight.models.blocks import blocks, sublayers, widths


@dataclass(frozen=True, kw_only=True)
class IA3(Adapter):
    """A learned factor for each channel of the keys, the values, and the feed-forward networks' inner activations.

    If an attention has separate projections, the second and third in the order of definition count as keys and values.
    Where a model defines its queries there instead of its keys (OPT: k, v, q), products of queries and keys are scaled
    just the same. A single projection for all three is scaled as a whole, as in PEFT.

    Args:
        lr: learning rate per step, as in the paper.
    """

    lr: float = 3e-3

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        attention, feed_forward = [], []
        for block in blocks(candidates):
            parts = sublayers(candidates, block)
            for names in parts.attention:
                attention += names[1:-1][:2] or names[:-1]
            feed_forward += parts.feed_forward[-1:]
        if not attention and not feed_forward:
            raise InputError(
                "E-SUBLAYER",
                f"the blocks of {type(model).__name__} have no attention or feed-forward network with linear layers, "
                "which ia3 scales; choose another adapter, such as lora",
            )
        for name in attention:
            _upgrade_(candidates[name], _OUTPUT)
        for name in feed_forward:
            _upgrade_(candidates[name], _INPUT)
        found = {"(keys and values)": attention, "(feed-forward networks)": feed_forward}
        return {kind: names for kind, names in found.items() if names}

    def undecayed(self, model: nn.Module) -> set[nn.Parameter]:
        return {layer.ia3_l for layer in model.modules() if isinstance(layer, IA3Layer)}  # factors should stay near 1

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, IA3Layer)}
        return {
            "peft_type": "IA3",
            **targeting(model, layers),
            "feedforward_modules": sorted(name for name, layer in layers.items() if isinstance(layer, ScaledInput)),
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
            "init_ia3_weights": True,
        }


class IA3Layer(Switchable):
    """A frozen linear layer with a learned factor, initially 1, for each of its outputs or inputs."""

    ia3_l: nn.Parameter  # a column for outputs, a row for inputs: PEFT's name and shapes
    weight: Any
    bias: Any

    def scaled(self, x: Tensor) -> Tensor:
        """``x`` (..., channels) with each channel times its factor."""
        return x if is_off(self) else (x * self.ia3_l.flatten()).to(x.dtype)

    @torch.no_grad()
    def merge_(self) -> None:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        factors = self.ia3_l.to(wide)  # (out, 1) or (1, in), as the weight of nn.Linear is (out, in)
        self.weight.copy_(self.weight.to(wide) * (factors.T if isinstance(self, Conv1D) else factors))
        if isinstance(self, ScaledOutput) and self.bias is not None:
            self.bias.copy_(self.bias.to(wide) * factors[:, 0])
        del self.ia3_l
        self.__class__ = Conv1D if isinstance(self, Conv1D) else nn.Linear  # type: ignore[assignment]  # as it was


class ScaledOutput(IA3Layer):
    """``l * (W x + b)``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(super().forward(x))  # the plain layer's, which comes next in every subclass


class ScaledInput(IA3Layer):
    """``W (l * x) + b``."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(self.scaled(x))
        return y


class ScaledOutputLinear(ScaledOutput, nn.Linear):
    """See `ScaledOutput`."""


class ScaledOutputConv1D(ScaledOutput, Conv1D):
    """See `ScaledOutput`."""


class ScaledInputLinear(ScaledInput, nn.Linear):
    """See `ScaledInput`."""


class ScaledInputConv1D(ScaledInput, Conv1D):
    """See `ScaledInput`."""


_OUTPUT = {nn.Linear: ScaledOutputLinear, Conv1D: ScaledOutputConv1D}
_INPUT = {nn.Linear: ScaledInputLinear, Conv1D: ScaledInputConv1D}


def _upgrade_(layer: nn.Module, classes: Mapping[type[nn.Module], type[IA3Layer]]) -> None:
    inputs, outputs = widths(layer)
    made = classes[type(layer)]
    layer.__class__ = made
    assert isinstance(layer, IA3Layer)
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)  # small steps away from 1 count
    shape = (outputs, 1) if issubclass(made, ScaledOutput) else (1, inputs)
    layer.ia3_l = nn.Parameter(torch.ones(shape, device=layer.weight.device, dtype=dtype))
