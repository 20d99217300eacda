"""LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685) on weights that a module uses without a layer of their own.

There is no layer's output to which an update could be added, so the weight itself is read as
``W + (alpha / rank) B A``.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loralight.adapters.disabled import Switchable, is_off

# by module that this thread is in: the sums already computed, by weight
_MADE: ContextVar[Mapping[nn.Module, dict[str, Tensor]]] = ContextVar("made", default=MappingProxyType({}))


class LowRank(nn.Module):
    """The update of one matrix, or of each in a stack.

    Shapes: weight (*stack, out, in), lora_A (*stack, rank, in), lora_B (*stack, out, rank).
    """

    def __init__(self, weight: Tensor, *, rank: int, alpha: float) -> None:
        super().__init__()
        *stack, out, width = weight.shape
        like: Any = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.empty(*stack, rank, width, **like))
        self.lora_B = nn.Parameter(torch.zeros(*stack, out, rank, **like))
        bound = 1 / math.sqrt(width)  # that of `nn.init.kaiming_uniform_` with a = sqrt 5 for each matrix
        nn.init.uniform_(self.lora_A, -bound, bound)
        self.rank, self.alpha = rank, alpha

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of each matrix in the stack."""
        return self.lora_A, self.lora_B

    def update(self) -> Tensor:
        """``(alpha / rank) B A``, in A's dtype even under autocast, which would round it."""
        a, b = self.factors()
        with torch.autocast(a.device.type, enabled=False):
            return b @ a * self.scaling

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with the update, summed in A's dtype, at least float32, and rounded once."""
        return (weight.to(self.lora_A.dtype) + self.update()).to(weight.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}"


class LoraParameters(Switchable):
    """A module that reads each parameter named in ``lora`` as its weight with the update.

    ``state_dict`` and ``parameters`` hold the frozen weight. A read costs the product of A and B, which is computed
    once in a forward pass. In half precision the sum is rounded as in merging.
    """

    plain: ClassVar[type[nn.Module]]
    """The class of modules that is upgraded."""

    has_peft_form: ClassVar[bool] = False
    """Whether PEFT adapts such a module's parameters in the same way."""

    lora: nn.ModuleDict

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        updates = self.__dict__["_modules"].get("lora")
        if updates is None or not isinstance(value, nn.Parameter) or name not in updates or is_off(self):
            return value
        made = {} if torch.compiler.is_compiling() else _MADE.get().get(self, {})  # a compiler finds equal terms itself
        if name not in made:
            made[name] = updates[name](value)
        return made[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with read_once(self):
            return super().forward(*args, **kwargs)  # the plain module's, which comes next in every subclass

    @torch.no_grad()
    def merge_(self) -> None:
        for name, update in self.lora.items():
            weight = self._parameters[name]
            assert weight is not None
            weight.copy_(update(weight))
        del self.lora
        self.__class__ = self.plain  # type: ignore[assignment]  # the way back from `read_with_`


def read_with_(kind: type[LoraParameters], module: nn.Module, updates: Mapping[str, LowRank]) -> None:
    """Turn ``module`` into a ``kind`` that reads its parameters with these updates; it may already be a ``kind``."""
    module.__class__ = kind
    assert isinstance(module, LoraParameters)
    if "lora" not in module._modules:
        module.lora = nn.ModuleDict()
    module.lora.update(updates)


@contextmanager
def read_once(module: nn.Module) -> Iterator[None]:
    """A context that sums each weight of ``module`` and its update once, however often the weight is read."""
    if torch.compiler.is_compiling():
        yield
        return
    token = _MADE.set({**_MADE.get(), module: {}})
    try:
        yield
    finally:
        _MADE.reset(token)
