"""Frozen linear layers with weights of 8 or 4 bits, as in QLoRA: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from loralight.errors import InputError, did_you_mean
from loralight.models.quantisers import QUANTISERS, Quantiser


class Packed(nn.Parameter):
    """A part of a quantised weight, which is never trained."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise InputError(
                "E-QUANTIZE",
                "this adapter trains weights that task.quantize keeps in a few bits, in which nothing can learn: "
                "choose an adapter that adds parameters, such as lora, or task.quantize=null",
            )
        super().requires_grad_(False)
        return self


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that keeps its weight packed and computes with the unpacked W' in place of W.

    It unpacks W' in the forward pass and again in the backward pass; it keeps neither W' nor the input. The packed
    parts are parameters, so that they move, are saved and are compared as the weight was.

    Shapes: x (..., in), y (..., out).
    """

    quantiser: Quantiser
    context: Any
    parts: tuple[str, ...]
    weight_dtype: torch.dtype
    original: Tensor | None = None
    """The weight before packing, while the context of `quantised_` lasts."""

    @classmethod
    def quantise_(cls, layer: nn.Linear, quantiser: Quantiser) -> "QuantisedLinear":
        """Pack the weight of ``layer`` in place."""
        original = layer.weight.detach()
        tensors, context = quantiser.pack(original.float())
        del layer.weight
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.quantiser, layer.context, layer.parts = quantiser, context, tuple(f"packed_{name}" for name in tensors)
        layer.original, layer.weight_dtype = original, original.dtype
        for name, tensor in zip(layer.parts, tensors.values(), strict=True):
            layer.register_parameter(name, Packed(tensor, requires_grad=False))
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a new tensor at each call
        """W', in the dtype of W."""
        return self.unpacked().to(self.weight_dtype)

    def unpacked(self) -> Tensor:
        """W', in float32."""
        tensors = {name.removeprefix("packed_"): self._parameters[name].detach() for name in self.parts}  # type: ignore[union-attr]
        return self.quantiser.unpack(tensors, self.context)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Frozen.apply(x, self.bias, self)
        return y

    def merge_(self) -> None:
        """Become a plain layer with the weight W'."""
        self.become_plain_(self.weight)

    def become_plain_(self, weight: Tensor) -> None:
        """Become a plain layer with this weight in place of the packed one."""
        for name in self.parts:
            del self._parameters[name]
        for name in ("quantiser", "context", "parts", "weight_dtype", "original"):
            vars(self).pop(name, None)
        self.__class__ = nn.Linear  # type: ignore[assignment]  # the way back from `quantise_`
        bias = self._parameters.pop("bias")
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        self._parameters["bias"] = bias  # after the weight, as in a plain layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the packed parts with the layer, but never round them to its dtype."""
        before = {name: self._parameters[name].data for name in self.parts}  # type: ignore[union-attr]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            part = self._parameters[name]
            assert part is not None
            if part.dtype != tensor.dtype:
                self._parameters[name] = Packed(tensor.to(part.device), requires_grad=False)
        return self


class _Frozen(Function):
    """``W' x + b``, which keeps only the layer itself for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.unpacked().to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_x = grad @ ctx.layer.unpacked().to(grad.dtype) if ctx.needs_input_grad[0] else None
        of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None


@contextmanager
def quantised_(model: nn.Module, method: str | None, *, head: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Pack the weights of the linear layers of ``model`` in place; inside the context the layers still hold W.

    The head stays as it is, and so do output embeddings and layers that share their weights with others.

    Args:
        model: a model whose pretrained weights are already loaded.
        method: a name in `loralight.models.quantisers.QUANTISERS`; nothing is done if None.
        head: parts that are trained as a whole.

    Raises:
        InputError: there is no such method, or no layer to quantise (``E-QUANTIZE``), or its library is missing
            (``E-PACKAGE``).
    """
    layers = [] if method is None else _choose(model, head)
    quantiser = None if method is None else find_quantiser(method)
    done = [QuantisedLinear.quantise_(layer, quantiser) for layer in layers if quantiser is not None]
    try:
        yield
    finally:
        for layer in done:
            layer.original = None


def find_quantiser(method: str) -> Quantiser:
    """The method of that name; its library is installed.

    Raises:
        InputError: there is no such method (``E-QUANTIZE``), or its library is missing (``E-PACKAGE``).
    """
    if method not in QUANTISERS:
        raise InputError(
            "E-QUANTIZE",
            f"task.quantize={method}: choose {', '.join(QUANTISERS)}, or null.{did_you_mean(method, QUANTISERS)}",
        )
    quantiser = QUANTISERS[method]
    quantiser.library()
    return quantiser


def refuse_packed(modules: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ``E-QUANTIZE`` if one of these modules is a quantised layer."""
    for name in names:
        if isinstance(modules[name], QuantisedLinear):
            raise InputError(
                "E-QUANTIZE",
                f"task.quantize keeps the weight of {name} in a few bits, and this method cannot adapt such a layer: "
                "choose lora, dora or lora_fa, or task.quantize=null",
            )


def as_before(model: nn.Module) -> Iterator[Tensor]:
    """The parameters of a model before it was quantised; packed weights appear without values (device ``meta``)."""
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            yield torch.empty(module.out_features, module.in_features, dtype=module.weight_dtype, device="meta")
    yield from (parameter for parameter in model.parameters() if not isinstance(parameter, Packed))


def _choose(model: nn.Module, head: Sequence[nn.Module]) -> list[nn.Linear]:
    words = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    kept = {id(module) for part in (*head, *([] if words is None else [words])) for module in part.modules()}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and id(module) not in kept and owners[id(module.weight)] == 1
    ]
    if not layers:
        raise InputError(
            "E-QUANTIZE",
            f"task.quantize: {type(model).__name__} has no nn.Linear outside its head, and only these are quantised; "
            "set it to null",
        )
    return layers
