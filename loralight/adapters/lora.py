"""LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.lora_from_peft import lora_arguments
from loralight.adapters.lora_layers import LAYERS, LoraConv1D, LoraLayer, peft_computes_the_same
from loralight.adapters.targets import match, resolve
from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """Low-rank updates beside the frozen weights of the chosen layers.

    Args:
        targets: which layers, one pattern or several: presets (``all``, ``all-linear``, ``all-conv``, ``attention``,
            ``mlp``), module names (``query``, ``layer.0.query``), or globs over dotted module names
            (``*.layer.[0-3].*``); ``^`` before a name says that it is whole. Each must match.
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
        hits = resolve(candidates, self.targets, types=tuple(LAYERS), exclude=self.exclude)
        names = list(dict.fromkeys(name for found in hits.values() for name in found))
        refuse_tied(model, names)
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
            LAYERS[type(layer)].upgrade_(layer, rank=rank, alpha=float(alpha), dropout=self.dropout)
        return hits

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "Lora | None":
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            return None
        return cls(**lora_arguments(config, tensors))

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        return {layer.lora_B: self.lr_ratio_B for layer in model.modules() if isinstance(layer, LoraLayer)}

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        if not all(map(peft_computes_the_same, layers.values())):
            return None
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
            "fan_in_fan_out": any(isinstance(layer, LoraConv1D) for layer in layers.values()),
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        layers = [name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
        return {f"{name}.{part}": f"{name}.{part}.weight" for name in layers for part in ("lora_A", "lora_B")}


def refuse_tied(model: nn.Module, names: list[str]) -> None:
    """Raise ``E-TIED`` if a layer's weight is another module's too: merging an update of one would change both."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for sharing in owners.values():
        if len(sharing) > 1 and (chosen := [name for name in sharing if name in names]):
            others = ", ".join(name for name in sharing if name != chosen[0])
            raise InputError(
                "E-TIED",
                f"{chosen[0]} shares its weight with {others}, so an update of one would be merged into both: leave "
                f"it out, with adapter.exclude=[{chosen[0]}] say",
            )
