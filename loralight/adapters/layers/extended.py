"""LoRA on layers of timm and transformers that extend PyTorch's own and change only the weight, padding or sum.

Layers that pad their input or add their bias differently get an update added to their output, as plain layers do.
Layers that standardise their weight read it as ``W + (alpha / rank) B A``: an update of their output could not be
merged.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraConv2d, LoraLayer, LoraLinear
from loralight.adapters.layers.parameters import LoraParameters, LowRank, read_with_


class Rebuilt(nn.Module):
    """A module whose class is created when needed, so that no library is imported for it; it can be pickled."""

    plain: ClassVar[Any]

    def __reduce__(self) -> Any:
        return _blank, (self.plain,), self.__dict__


class LoraUnfused(Rebuilt, LoraLinear):
    """A linear layer that adds its bias after rounding the product; the plain layer computes both."""

    is_additive = has_peft_form = True

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)


class LoraPadded(Rebuilt, LoraConv2d):
    """A convolution that pads its input as TensorFlow's "same" does; A pads in the same way."""

    is_additive = True

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        from timm.layers.padding import pad_same  # already loaded: the layer is timm's

        return super().low_rank(
            pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), lora_A, lora_B
        )


class LoraStandardised(Rebuilt, LoraParameters):
    """A convolution that standardises the sum of its weight and the update before it convolves.

    Shapes: lora_A (rank, fan in), lora_B (out, rank), where fan in = in / groups x kernel.
    """

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """Give the weight its update; ``dropout`` must be 0."""
        assert isinstance(layer, nn.modules.conv._ConvNd) and not dropout
        read_with_(cls, layer, {"weight": _KernelUpdate(layer.weight, rank=rank, alpha=alpha)})
        assert isinstance(layer, cls)
        return layer


class _KernelUpdate(LowRank):
    """The update of a kernel (out, in / groups, *space), as a matrix (out, fan in)."""

    def __init__(self, weight: Tensor, **settings: Any) -> None:
        super().__init__(weight.flatten(1), **settings)

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight.flatten(1)).view_as(weight)


EXTENDED: Mapping[str, type[LoraUnfused | LoraPadded | LoraStandardised]] = MappingProxyType(
    {
        "transformers.models.falcon.modeling_falcon.FalconLinear": LoraUnfused,
        "timm.layers.linear.Linear": LoraUnfused,
        "timm.layers.conv2d_same.Conv2dSame": LoraPadded,
        "timm.layers.std_conv.StdConv2d": LoraStandardised,
        "timm.layers.std_conv.StdConv2dSame": LoraStandardised,
        "timm.layers.std_conv.ScaledStdConv2d": LoraStandardised,
        "timm.layers.std_conv.ScaledStdConv2dSame": LoraStandardised,
        "transformers.models.bit.modeling_bit.WeightStandardizedConv2d": LoraStandardised,
    }
)
"""How each class is adapted, by the name of the class; each is tested against a plain computation."""


def extended_among(modules: Iterable[object]) -> tuple[type[nn.Module], ...]:
    """The classes of ``modules`` that are in `EXTENDED`."""
    return tuple({type(module): None for module in modules if isinstance(module, nn.Module) and _way(type(module))})


@cache
def kind_of_extended(plain: Any) -> Any:
    """The LoRA class of a class in `EXTENDED`."""
    way = _way(plain)
    assert way is not None
    able = {name: vars(way).get(name, False) for name in ("is_additive", "has_peft_form")}
    return type(f"Lora{plain.__name__}", (way, plain), {"plain": plain, "__module__": plain.__module__, **able})


def is_read_with_its_update(plain: type[nn.Module]) -> bool:
    """Whether such a layer has its update in its weight, so that no dropout can act on the update's input."""
    return _way(plain) is LoraStandardised


def _way(plain: type[nn.Module]) -> type[LoraUnfused | LoraPadded | LoraStandardised] | None:
    return EXTENDED.get(f"{plain.__module__}.{plain.__qualname__}")


def _blank(plain: Any) -> nn.Module:
    kind: Any = kind_of_extended(plain)
    blank: nn.Module = kind.__new__(kind)
    return blank
