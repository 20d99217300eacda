"""LoRA on the experts of a mixture, whose weights are one three-dimensional parameter (transformers 5)."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from loralight.adapters.layers.parameters import LoraParameters, LowRank, read_with_


class LoraExperts(LoraParameters):
    """Experts of any class; each weight (experts, out, in) has an A and B for every expert."""

    has_peft_form = True

    def __reduce__(self) -> Any:
        return _blank, (self.plain,), self.__dict__


class ExpertLowRank(LowRank):
    """The updates of all experts, in the layout of PEFT's tensors.

    Shapes: weight (experts, out, in), or (experts, in, out) if ``transposed``; lora_A (experts x rank, in), lora_B
    (out, rank x experts).
    """

    def __init__(self, weight: Tensor, *, transposed: bool, **settings: Any) -> None:
        super().__init__(weight.mT if transposed else weight, **settings)
        self.num_experts, self.transposed = len(weight), transposed
        self.lora_A = nn.Parameter(self.lora_A.detach().flatten(0, 1))
        self.lora_B = nn.Parameter(self.lora_B.detach().permute(1, 2, 0).flatten(1))

    def factors(self) -> tuple[Tensor, Tensor]:
        a = self.lora_A.view(self.num_experts, self.rank, -1)
        b = self.lora_B.view(-1, self.rank, self.num_experts).permute(2, 0, 1)
        return (b.mT, a.mT) if self.transposed else (a, b)


def expert_weights(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The weights of experts by name: three-dimensional parameters of modules of no other known kind."""
    others = (nn.modules.conv._ConvNd, LoraParameters, LowRank)
    return {
        f"{name}.{weight_name}": weight
        for name, module in modules.items()
        for weight_name, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and len(weight) > 1 and not isinstance(module, others)
    }


def adapt_experts_(module: nn.Module, name: str, *, rank: int, alpha: float) -> None:
    """Give the weight ``name`` of ``module`` its updates; another weight of ``module`` may already be adapted."""
    plain: Any = type(module)
    kind = plain if isinstance(module, LoraExperts) else _kind(plain)
    transposed = bool(getattr(module, "is_transposed", False))  # an attribute of transformers' experts
    weight = module._parameters[name]
    assert weight is not None
    read_with_(kind, module, {name: ExpertLowRank(weight, transposed=transposed, rank=rank, alpha=alpha)})


@cache
def _kind(plain: Any) -> type[LoraExperts]:
    return type(f"Lora{plain.__name__}", (LoraExperts, plain), {"plain": plain, "__module__": plain.__module__})


def _blank(plain: Any) -> nn.Module:
    kind = _kind(plain)
    return kind.__new__(kind)
