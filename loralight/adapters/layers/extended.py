"""LoRA on layers of timm and transformers that extend PyTorch's own and change the weight, padding or sum alone.

Those that pad their input or add their bias in another way get an update beside them, as plain layers do. Those that
standardise their weight have it read as ``W + (alpha / rank) B A``: an update beside them could not be merged.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraConv2d, LoraLayer, LoraLinear
from loralight.adapters.layers.parameters import LoraParameters, LowRank, read_with_


class Rebuilt(nn.Module):
    """A module whose class is made when it is needed, so that no library is imported for it; it can be pickled."""

    plain: ClassVar[Any]

    def __reduce__(self) -> Any:
        return _blank, (self.plain,), self.__dict__


class LoraUnfused(Rebuilt, LoraLinear):
    """A linear layer that adds its bias after rounding the product: the plain layer itself computes both."""

    is_additive = has_peft_form = True

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)


class LoraPadded(Rebuilt, LoraConv2d):
    """A convolution that pads its input to the size that TensorFlow's "same" gives; A pads alike."""

    is_additive = True

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        from timm.layers.padding import pad_same  # loaded already: the layer is timm's

        return super().low_rank(
            pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), lora_A, lora_B
        )


class LoraStandardised(Rebuilt, LoraParameters):
    """A convolution that standardises its weight, with the update, before it convolves.

    Shapes: lora_A (rank, fan in), lora_B (out, rank), where fan in = in / groups x kernel.
    """

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """Give the weight its update; ``dropout`` has to be 0."""
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
"""The way to adapt each class, by its name: each is tested against a plain computation."""


def extended_among(modules: Iterable[object]) -> tuple[type[nn.Module], ...]:
    """The classes in `EXTENDED` that some of ``modules`` are of."""
    return tuple({type(module): None for module in modules if isinstance(module, nn.Module) and _way(type(module))})


@cache
def kind_of_extended(plain: Any) -> Any:
    """The LoRA class of such a class."""
    way = _way(plain)
    assert way is not None
    able = {name: vars(way).get(name, False) for name in ("is_additive", "has_peft_form")}
    return type(f"Lora{plain.__name__}", (way, plain), {"plain": plain, "__module__": plain.__module__, **able})


def is_read_with_its_update(plain: type[nn.Module]) -> bool:
    """Whether no update can be beside such a layer, so that nothing can be dropped on its way there."""
    return _way(plain) is LoraStandardised


def _way(plain: type[nn.Module]) -> type[LoraUnfused | LoraPadded | LoraStandardised] | None:
    return EXTENDED.get(f"{plain.__module__}.{plain.__qualname__}")


def _blank(plain: Any) -> nn.Module:
    kind: Any = kind_of_extended(plain)
    blank: nn.Module = kind.__new__(kind)
    return blank
