"""Ways to pack weights into few bits, each by a library that is an optional extra."""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from loralight.errors import InputError


class Quantiser(ABC):
    """A way to pack a weight; a new one is a subclass and a line in `QUANTISERS`."""

    module: ClassVar[str]
    """The module that packs; the extra that installs it has the name of its package."""

    @abstractmethod
    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Any]:
        """The packed tensors of a weight (out, in) in float32, and the plain values needed to unpack them."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], context: Any) -> Tensor:
        """The weight that these tensors hold, (out, in) in float32."""

    def library(self) -> Any:
        """The library.

        Raises:
            InputError: it is missing (``E-PACKAGE``).
        """
        logging.disable(logging.WARNING)  # at import, both report missing kernels
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            package = self.module.partition(".")[0]
            raise InputError(
                "E-PACKAGE",
                f'this task.quantize needs the package {package} ({error}): pip install "loralight[{package}]"',
            ) from error
        finally:
            logging.disable(logging.NOTSET)


class TorchaoInt8(Quantiser):
    """8 bits a weight and a scale for each output (torchao's weight-only int8)."""

    module = "torchao.quantization"

    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Any]:
        torchao = self.library()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
        packed: Any = layer.weight
        names, context = packed.__tensor_flatten__()
        return {name: getattr(packed, name) for name in names}, (type(packed), context, weight.shape)

    def unpack(self, tensors: Mapping[str, Tensor], context: Any) -> Tensor:
        kind, rest, shape = context
        weight: Tensor = kind.__tensor_unflatten__(dict(tensors), rest, shape, (shape[1], 1)).dequantize()
        return weight


class BitsandbytesFourBit(Quantiser):
    """4 bits a weight, blocks of 64 with a scale of 8 bits each (QLoRA's double quantisation).

    Args:
        kind: bitsandbytes' name of the 4-bit format: ``nf4`` or ``fp4``.
    """

    module = "bitsandbytes.functional"

    def __init__(self, *, kind: str) -> None:
        self.kind = kind

    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Any]:
        functional = self.library()
        codes, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=64, compress_statistics=True, quant_type=self.kind
        )
        parts = state.as_dict(packed=False)
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        return {"codes": codes, **tensors}, {name: part for name, part in parts.items() if name not in tensors}

    def unpack(self, tensors: Mapping[str, Tensor], context: Any) -> Tensor:
        functional = self.library()
        state = {name: tensor for name, tensor in tensors.items() if name != "codes"}
        codes = tensors["codes"]
        weight: Tensor = functional.dequantize_4bit(
            codes, functional.QuantState.from_dict({**state, **context}, codes.device)
        )
        return weight


QUANTISERS: dict[str, Quantiser] = {
    "torchao/int8": TorchaoInt8(),
    "bitsandbytes/nf4": BitsandbytesFourBit(kind="nf4"),
    "bitsandbytes/fp4": BitsandbytesFourBit(kind="fp4"),
}
"""The choices of ``task.quantize``."""
