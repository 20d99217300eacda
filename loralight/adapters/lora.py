"""LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters.base import Adapter
from loralight.adapters.targets import match, resolve
from loralight.errors import InputError


class LoraLinear(nn.Linear):
    """A frozen linear layer with a low-rank update: ``y = W x + b + (alpha / rank) B A dropout(x)``.

    A plain ``nn.Linear`` becomes one in place, so its weight, its name in the model and every reference
    to it stay what they were; ``merge_`` turns it back.

    Shapes: x (..., in), lora_A (rank, in), lora_B (out, rank), y (..., out).
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    rank: int
    alpha: float
    lora_dropout: float

    @classmethod
    def upgrade_(cls, layer: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> "LoraLinear":
        """Turn ``layer`` into a LoRA layer: A Kaiming-uniform, B zero, so that it computes what it computed before."""
        weight = layer.weight
        # In half precision small updates to A and B would be rounded away, and A x could overflow to inf.
        dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        layer.__class__ = cls
        assert isinstance(layer, LoraLinear)
        layer.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, device=weight.device, dtype=dtype))
        layer.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=weight.device, dtype=dtype))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))
        layer.rank, layer.alpha, layer.lora_dropout = rank, alpha, dropout
        return layer

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x = F.dropout(x, self.lora_dropout, self.training).to(self.lora_A.dtype)
        return y + (F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling).to(y.dtype)

    @torch.no_grad()
    def merge_(self) -> None:
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # bfloat16 would round small updates away
        delta = self.lora_B.to(wide) @ self.lora_A.to(wide)
        self.weight.copy_(self.weight.to(wide) + self.scaling * delta)
        del self.lora_A, self.lora_B, self.rank, self.alpha, self.lora_dropout
        self.__class__ = nn.Linear  # type: ignore[assignment]  # the way back from `upgrade_`

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}, lora_dropout={self.lora_dropout}"


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """Low-rank updates beside the frozen weights of the chosen layers.

    Args:
        targets: which layers, one pattern or several: presets (``all-linear``, ``attention``, ``mlp``), module names
            (``query``, ``layer.0.query``), or globs over dotted module names (``*.layer.[0-3].*``). Each must match.
        rank: rows of A and columns of B.
        alpha: the update is scaled by ``alpha / rank``; 2 x rank if None.
        dropout: probability with which an input of the low-rank path is dropped.
        exclude: patterns of layers that ``targets`` choose and that stay as they are.
        rank_pattern: ranks of particular layers, by pattern; the last that matches counts.
        alpha_pattern: alphas of particular layers, likewise; else 2 x the layer's rank if ``alpha`` is None.
        lr_ratio_B: B's learning rate over A's (LoRA+, Hayou et al., 2024, https://arxiv.org/abs/2402.12354).
        lr: learning rate per step; about ten times what full fine-tuning takes.
    """

    targets: str | Sequence[str]
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    exclude: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    lr_ratio_B: float = 1.0
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for where, rank in {
            "rank": self.rank,
            **{f"rank_pattern[{k}]": v for k, v in self.rank_pattern.items()},
        }.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise InputError("E-RANK", f"adapter.{where} is {rank!r}; give a whole number of at least 1, such as 8")
        alphas = {"alpha": self.alpha, **{f"alpha_pattern[{k}]": v for k, v in self.alpha_pattern.items()}}
        for where, alpha in alphas.items():
            number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
            if alpha is not None and not (number and 0 < alpha < math.inf):
                raise InputError(
                    "E-ALPHA", f"adapter.{where} is {alpha!r}; give a positive number, or null for 2 x rank"
                )
        if not 0 <= self.dropout < 1:
            raise InputError("E-DROPOUT", f"adapter.dropout is {self.dropout!r}; give a probability in [0, 1)")
        if not 0 < self.lr_ratio_B < math.inf:
            raise InputError(
                "E-LR-RATIO", f"adapter.lr_ratio_B is {self.lr_ratio_B!r}; give a positive number, such as 16"
            )

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        hits = resolve(candidates, self.targets, types=(nn.Linear,), exclude=self.exclude)
        names = list(dict.fromkeys(name for found in hits.values() for name in found))
        ranks = {
            n: r for pattern, r in self.rank_pattern.items() for n in match(names, pattern, "adapter.rank_pattern")
        }
        alphas = {
            n: a for pattern, a in self.alpha_pattern.items() for n in match(names, pattern, "adapter.alpha_pattern")
        }
        for name in names:
            rank = ranks.get(name, self.rank)
            alpha = alphas.get(name, 2 * rank if self.alpha is None else self.alpha)
            layer = candidates[name]
            assert isinstance(layer, nn.Linear)
            LoraLinear.upgrade_(layer, rank=rank, alpha=float(alpha), dropout=self.dropout)
        return hits

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        return {layer.lora_B: self.lr_ratio_B for layer in model.modules() if isinstance(layer, LoraLinear)}

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
        alpha = float(2 * self.rank if self.alpha is None else self.alpha)
        # PEFT takes a name for the end of longer names too; `^` in a pattern and `exclude_modules` say it is the whole
        others = [
            name
            for name, _ in model.named_modules()
            if name not in layers and name.endswith(tuple(f".{layer}" for layer in layers))
        ]
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(layers),
            "exclude_modules": others or None,
            "rank_pattern": {f"^{name}": layer.rank for name, layer in layers.items() if layer.rank != self.rank},
            "alpha_pattern": {f"^{name}": layer.alpha for name, layer in layers.items() if layer.alpha != alpha},
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        layers = [name for name, layer in model.named_modules() if isinstance(layer, LoraLinear)]
        return {f"{name}.{part}": f"{name}.{part}.weight" for name in layers for part in ("lora_A", "lora_B")}
