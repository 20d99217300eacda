"""LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.lora_attention import show_weights_
from loralight.adapters.lora_experts import expert_weights
from loralight.adapters.lora_kinds import LAYERS, check, check_slices, upgrade_
from loralight.adapters.lora_layers import LoraConv1D, LoraLayer
from loralight.adapters.lora_parameters import LowRank
from loralight.adapters.lora_peft import peft_experts, peft_has_a_form, peft_tensor_names
from loralight.adapters.lora_tied import share_, tied
from loralight.adapters.targets import match, resolve
from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """Low-rank updates beside the frozen weights of the chosen layers.

    Args:
        targets: which layers, one pattern or several: presets (``all``, ``all-linear``, ``all-conv``, ``attention``,
            ``mlp``, ``embedding``, ``experts``), module names (``query``, ``layer.0.query``), or globs over dotted
            module names (``*.layer.[0-3].*``). Each must match. Experts go by the name of their weight
            (``experts.down_proj``).
        rank: rows of A and columns of B.
        alpha: the update is scaled by ``alpha / rank``; 2 x rank if None.
        dropout: probability with which an input of the low-rank path is dropped.
        exclude: patterns of layers that ``targets`` choose and that stay as they are.
        rank_pattern: ranks of particular layers, by pattern; the last that matches counts.
        alpha_pattern: alphas of particular layers, likewise; else 2 x the layer's rank if ``alpha`` is None.
        slices: for layers that compute queries, keys and values at once (q over k over v, as in timm and GPT-2, not
            mixed head by head), by pattern: which of them are adapted, each with its own A and B (``qv``). For
            ``nn.MultiheadAttention`` also ``o``, its output projection; there ``qkvo`` if not given.
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
    slices: Mapping[str, str] = field(default_factory=dict)
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
        check_slices(self.slices)
        if not 0 <= self.dropout < 1:
            raise InputError("E-DROPOUT", f"adapter.dropout is {self.dropout!r}; give a probability in [0, 1)")
        if not 0 < self.lr_ratio_B < math.inf:
            raise InputError(
                "E-LR-RATIO", f"adapter.lr_ratio_B is {self.lr_ratio_B!r}; give a positive number, such as 16"
            )

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        layers: dict[str, Any] = {**candidates, **expert_weights(candidates)}
        hits = resolve(layers, self.targets, types=(*LAYERS, nn.Parameter), exclude=self.exclude)
        names = dict.fromkeys(name for found in hits.values() for name in found)
        together = tied(model, layers, names, self.exclude)
        hits = {target: [twin for name in found for twin in together[name]] for target, found in hits.items()}
        ranks = _by_name(self.rank_pattern, together, "adapter.rank_pattern")
        alphas = _by_name(self.alpha_pattern, together, "adapter.alpha_pattern")
        slices = _by_name(self.slices, together, "adapter.slices")
        for name in together:
            check(name, layers[name], dropout=self.dropout, slices=slices.get(name))
        for name in [name for name, group in together.items() if name == group[0]]:
            rank = ranks.get(name, self.rank)
            alpha = float(alphas.get(name, 2 * rank if self.alpha is None else self.alpha))
            upgrade_(layers, name, rank=rank, alpha=alpha, dropout=self.dropout, slices=slices.get(name))
            share_(layers, together[name])
        show_weights_(model)
        return {target: list(dict.fromkeys(found)) for target, found in hits.items()}

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        return {layer.lora_B: self.lr_ratio_B for layer in model.modules() if isinstance(layer, LoraLayer | LowRank)}

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        if not peft_has_a_form(model):
            return None
        adapted = {**layers, **peft_experts(model)}
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
            "target_parameters": sorted(peft_experts(model)) or None,
            "exclude_modules": others or None,
            "rank_pattern": {f"^{name}": layer.rank for name, layer in adapted.items() if layer.rank != self.rank},
            "alpha_pattern": {f"^{name}": layer.alpha for name, layer in adapted.items() if layer.alpha != alpha},
            "bias": "none",
            "fan_in_fan_out": any(isinstance(layer, LoraConv1D) for layer in layers.values()),
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        return peft_tensor_names(model)


def _by_name(values: Mapping[str, Any], together: Mapping[str, list[str]], option: str) -> dict[str, Any]:
    """What a mapping from patterns says of each layer; of layers that share a weight, to all or none."""
    return {
        twin: value
        for pattern, value in values.items()
        for name in match(together, pattern, option)
        for twin in together[name]
    }
