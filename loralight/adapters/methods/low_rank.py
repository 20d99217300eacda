"""The common part of LoRA and its variants: the choice of layers, their ranks, and their names in PEFT."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.embedding import refuse_rescaling
from loralight.adapters.layers.lora import LoraConv1D, LoraLayer
from loralight.adapters.layers.parameters import LowRank
from loralight.adapters.peft.config import targeting
from loralight.adapters.peft.lora_names import peft_by_weight, peft_experts, peft_has_a_form, peft_tensor_names
from loralight.adapters.targets import excluding, match, resolve
from loralight.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LowRankAdapter(Adapter):
    """Low-rank updates of the frozen weights of the chosen layers.

    Args:
        targets: patterns of the layers to adapt, one or several: presets (``all``, ``all-linear``, ``all-conv``,
            ``attention``, ``mlp``), module names (``query``, ``layer.0.query``), or globs over dotted module names
            (``*.layer.[0-3].*``). Each must match.
        rank: rows of A and columns of B.
        alpha: the update is scaled by ``alpha / rank``; 2 x rank if None.
        dropout: probability with which an input of the low-rank path is dropped.
        exclude: patterns of layers that stay as they are although ``targets`` choose them.
        rank_pattern: ranks of particular layers, by pattern; the last matching pattern counts.
        alpha_pattern: alphas of particular layers, by pattern; the last matching pattern counts. For other layers
            ``alpha`` holds, or 2 x the layer's rank if that is None.
        lr: learning rate per step; about ten times that of full fine-tuning.
        lr_rank: the rank for which ``lr`` is meant. With alpha = 2 x rank, an optimizer with steps of fixed size, such
            as Adam, moves the update in proportion to the rank. B is therefore trained at ``lr * lr_rank / rank``,
            which is the same as a fixed alpha of ``2 * lr_rank``, so that a rate found at one rank holds at others. If
            this is None or ``alpha`` is given, B is trained at ``lr``.
    """

    targets: str | Sequence[str]
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    exclude: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    lr: float = 1e-3
    lr_rank: int | None = 8

    layers: ClassVar[Mapping[type[nn.Module], type[Any]]]
    """The adapted class of each class of layer."""

    def __post_init__(self) -> None:
        check_rank("rank", self.rank)
        for pattern, rank in self.rank_pattern.items():
            check_rank(f"rank_pattern[{pattern}]", rank)
        if self.alpha is not None:
            check_alpha("alpha", self.alpha)
        for pattern, alpha in self.alpha_pattern.items():
            check_alpha(f"alpha_pattern[{pattern}]", alpha)
        check_probability("dropout", self.dropout)
        if self.lr_rank is not None:
            check_rank("lr_rank", self.lr_rank)

    def without(self, names: Collection[str]) -> Self:
        return replace(self, exclude=excluding(self.exclude, names))

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        hits, names = choose(model, candidates, self.targets, types=tuple(self.layers), exclude=self.exclude)
        sizes = self.sizes({name: [name] for name in names})
        for name in names:
            refuse_rescaling(name, candidates[name])
        for name in names:
            self.adapt_(candidates[name], **sizes[name])
        return hits

    def check_training(self, model: nn.Module) -> None:
        ranks = {f"rank_pattern[{pattern}]": rank for pattern, rank in self.rank_pattern.items()}
        refuse_excess({"rank": self.rank, **ranks}, model, tuple(self.layers))

    def sizes(self, together: Mapping[str, list[str]]) -> dict[str, Any]:
        """The rank and alpha of each layer, as keywords; ``together`` groups layers that share a weight."""
        ranks = by_name(self.rank_pattern, together, "adapter.rank_pattern")
        alphas = by_name(self.alpha_pattern, together, "adapter.alpha_pattern")
        sizes = {}
        for name in together:
            rank = ranks.get(name, self.rank)
            sizes[name] = {"rank": rank, "alpha": float(alphas.get(name, self.alpha_of(rank)))}
        return sizes

    def adapt_(self, layer: nn.Module, *, rank: int, alpha: float) -> LoraLayer:
        """Turn one of the chosen layers into its adapted class."""
        adapted: LoraLayer = self.layers[type(layer)].upgrade_(layer, rank=rank, alpha=alpha, dropout=self.dropout)
        return adapted

    def alpha_of(self, rank: int) -> float:
        """The alpha of a layer that no pattern matches."""
        return 2 * rank if self.alpha is None else self.alpha

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer | LowRank)]
        found = {layer.lora_B: self.lr_factor(layer.rank) for layer in layers}
        return {factor: multiple for factor, multiple in found.items() if isinstance(factor, nn.Parameter)}

    def lr_factor(self, rank: int) -> float:
        """The ratio to ``lr`` of B's learning rate in a layer of this rank."""
        return 1.0 if self.lr_rank is None or self.alpha is not None else self.lr_rank / rank

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        if not peft_has_a_form(model):
            return None
        by_weight = peft_by_weight(model)
        weights = {**{f"{name}.weight": layer for name, layer in by_weight.items()}, **peft_experts(model)}
        layers = {name: layer for name, layer in layers.items() if name not in by_weight}
        adapted = {**layers, **weights}
        alpha = float(self.alpha_of(self.rank))
        return {  # in patterns `^` marks a whole name
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            **targeting(model, layers),
            "target_parameters": sorted(weights) or None,
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


def choose(
    model: nn.Module,
    candidates: Mapping[str, nn.Module],
    targets: str | Sequence[str],
    *,
    types: tuple[type[nn.Module], ...],
    exclude: str | Sequence[str] = (),
) -> tuple[dict[str, list[str]], list[str]]:
    """The layers that each target chooses, and a list of all chosen layers without repetition.

    Raises:
        InputError: see `resolve`; or a layer shares its weight with another (``E-TIED``).
    """
    hits = resolve(candidates, targets, types=types, exclude=exclude)
    names = list(dict.fromkeys(name for found in hits.values() for name in found))
    refuse_tied(model, names)
    return hits, names


def patterns(model: nn.Module) -> dict[str, Any]:
    """The ``rank_pattern`` and ``alpha_pattern`` that describe every LoRA layer of ``model`` as it is now."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    # a name also matches the end of longer names, and the last match counts, so the longest comes last
    names = sorted(layers, key=lambda name: name.count("."))
    return {
        "rank_pattern": {name: layers[name].rank for name in names},
        "alpha_pattern": {name: layers[name].alpha for name in names},
    }


def by_name(values: Mapping[str, T], together: Mapping[str, list[str]], option: str) -> dict[str, T]:
    """The value that a mapping from patterns gives each layer; layers that share a weight get the same value."""
    return {
        twin: value
        for pattern, value in values.items()
        for name in match(together, pattern, option)
        for twin in together[name]
    }


def check_rank(where: str, rank: Any) -> None:
    """Raise ``E-RANK`` unless ``rank`` is a whole number of at least 1."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError("E-RANK", f"adapter.{where} is {rank!r}; give a whole number of at least 1, such as 8")


def refuse_excess(ranks: Mapping[str, int], model: nn.Module, types: tuple[type[nn.Module], ...]) -> None:
    """Raise ``E-RANK`` if a rank is above the smaller dimension of every layer: no weight has such a rank.

    A rank too large only for narrower layers, such as a router of eight experts, is allowed: their excess is small.

    Args:
        ranks: ranks by the names of their settings.
        types: of the layers that can be adapted.
    """
    widths = {name: _smaller_dimension(layer) for name, layer in model.named_modules() if type(layer) in types}
    widest = max(widths, key=widths.__getitem__, default=None)
    for where, rank in ranks.items():
        if widest is not None and rank > widths[widest]:
            raise InputError(
                "E-RANK",
                f"adapter.{where} is {rank}, but no layer of the model has a rank above {widths[widest]}, which "
                f"{widest} has; give at most that",
            )


def _smaller_dimension(layer: Any) -> int:
    if isinstance(layer, nn.MultiheadAttention):
        return int(layer.embed_dim)
    if isinstance(layer, nn.Linear):  # whose weight may be packed
        return min(layer.in_features, layer.out_features)
    return int(min(layer.weight.flatten(1).shape))


def check_alpha(where: str, alpha: Any) -> None:
    """Raise ``E-ALPHA`` unless ``alpha`` is a positive number."""
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and 0 < alpha < math.inf):
        raise InputError("E-ALPHA", f"adapter.{where} is {alpha!r}; give a positive number, or null for 2 x rank")


def check_probability(where: str, value: float) -> None:
    """Raise ``E-DROPOUT`` unless ``value`` is a probability below 1."""
    if not 0 <= value < 1:
        raise InputError("E-DROPOUT", f"adapter.{where} is {value!r}; give a probability in [0, 1)")


def refuse_tied(model: nn.Module, names: list[str]) -> None:
    """Raise ``E-TIED`` if a layer shares its weight with another module: merging an update would change both."""
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
