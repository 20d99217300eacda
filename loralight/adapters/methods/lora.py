"""LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.attention import show_weights_
from loralight.adapters.layers.eva import redraw_
from loralight.adapters.layers.experts import adapt_experts_, expert_weights
from loralight.adapters.layers.extended import extended_among
from loralight.adapters.layers.initialisation import INITIALISATIONS
from loralight.adapters.layers.kinds import KINDS, check, check_slices, kind_of
from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.layers.penalties import crosstalk, squared_norm
from loralight.adapters.layers.tied import LoraTwin, share_, tied
from loralight.adapters.methods.low_rank import LowRankAdapter, by_name, check_probability, check_rank, patterns
from loralight.adapters.peft.lora_arguments import lora_arguments
from loralight.adapters.targets import resolve
from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lora(LowRankAdapter):
    """Low-rank updates ``scaling B A`` of frozen weights.

    Args:
        targets: patterns of the layers to adapt, one or several: presets (``all``, ``all-linear``, ``all-conv``,
            ``attention``, ``mlp``, ``embedding``, ``experts``), module names, or globs over dotted module names. Each
            must match. Experts are named by their weight (``experts.down_proj``).
        alpha: the update is scaled by ``alpha / rank``, or by ``alpha / sqrt(rank)`` with ``use_rslora``. If None, it
            is 2 x rank, but 16 at every rank with ``use_rslora``, which is meant to be independent of the rank.
        slices: the projections to adapt, such as ``qv``, by pattern, in layers that compute queries, keys and values at
            once (q over k over v, as in timm and GPT-2, not mixed head by head); each has its own A and B.
            ``nn.MultiheadAttention`` also has ``o``, its output projection, and defaults to ``qkvo``.
        use_rslora: scale by ``alpha / sqrt(rank)``, so that the size of a step does not shrink as the rank grows
            (rsLoRA, Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
        rank_dropout: probability with which a rank is dropped for the whole batch; the other ranks are scaled up. As in
            LyCORIS (Yeh et al., 2023, https://arxiv.org/abs/2309.14859).
        init: initialisation of A and B, see `loralight.adapters.layers.initialisation`. ``pissa`` and ``olora`` start
            at large factors and need a lower ``lr`` (PiSSA's authors train at 2e-5). ``eva`` looks at training data
            first and redistributes the ranks, see `loralight.adapters.layers.eva`. ``loftq`` brings a quantised base
            nearer to the original weights.
        eva_batches: number of training batches that ``eva`` looks at.
        eva_spread: the largest multiple of its own rank that a layer may get from ``eva``; 1 leaves all ranks as they
            are.
        frobenius: weight of a penalty on the updates, the sum of the squared Frobenius norms of ``scaling B A``.
        orthogonality: weight of a penalty on ranks that overlap, see `loralight.adapters.layers.penalties.crosstalk`.
        lr_ratio_B: ratio of B's learning rate to A's (LoRA+, Hayou et al., 2024, https://arxiv.org/abs/2402.12354).
    """

    slices: Mapping[str, str] = field(default_factory=dict)
    use_rslora: bool = False
    rank_dropout: float = 0.0
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"] = "kaiming"
    eva_batches: int = 8
    eva_spread: float = 2.0
    frobenius: float = 0.0
    orthogonality: float = 0.0
    lr_ratio_B: float = 1.0

    layers: ClassVar[Mapping[type[nn.Module], type[Any]]] = KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_slices(self.slices)
        check_probability("rank_dropout", self.rank_dropout)
        if self.init not in INITIALISATIONS:
            raise InputError("E-INIT", f"adapter.init is {self.init!r}; choose {', '.join(INITIALISATIONS)}")
        check_rank("eva_batches", self.eva_batches)
        if not 1 <= self.eva_spread < math.inf:
            raise InputError("E-INIT", f"adapter.eva_spread is {self.eva_spread!r}; give a number of at least 1")
        for where, weight in {"frobenius": self.frobenius, "orthogonality": self.orthogonality}.items():
            if not 0 <= weight < math.inf:
                raise InputError("E-PENALTY", f"adapter.{where} is {weight!r}; give a weight of at least 0")
        if not 0 < self.lr_ratio_B < math.inf:
            raise InputError(
                "E-LR-RATIO", f"adapter.lr_ratio_B is {self.lr_ratio_B!r}; give a positive number, such as 16"
            )

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        layers: dict[str, Any] = {**candidates, **expert_weights(candidates)}
        types: Any = (*self.layers, *extended_among(candidates.values()), nn.Parameter)
        hits = resolve(layers, self.targets, types=types, exclude=self.exclude)
        names = dict.fromkeys(name for found in hits.values() for name in found)
        together = tied(model, layers, names, self.exclude)
        sizes, slices = self.sizes(together), by_name(self.slices, together, "adapter.slices")
        for name, group in together.items():
            check(name, layers[name], special=self._special(), slices=slices.get(name), is_tied=len(group) > 1)
        for name in [name for name, group in together.items() if name == group[0]]:
            owner, _, weight = name.rpartition(".")
            if isinstance(layers[name], nn.Parameter):
                adapt_experts_(candidates[owner], weight, **sizes[name])
            else:
                self.adapt_(layers[name], **sizes[name], slices=slices.get(name))
            share_(layers, together[name])
        show_weights_(model)
        hits = {target: [twin for name in found for twin in together[name]] for target, found in hits.items()}
        return {target: list(dict.fromkeys(found)) for target, found in hits.items()}

    def adapt_(self, layer: nn.Module, *, rank: int, alpha: float, slices: str | None = None) -> LoraLayer:
        chosen = {} if slices is None else {"slices": slices}
        adapted: LoraLayer = kind_of(layer, slices).upgrade_(
            layer, rank=rank, alpha=alpha, dropout=self.dropout, **chosen
        )
        if isinstance(adapted, LoraLayer):
            adapted.rank_dropout, adapted.use_rslora = self.rank_dropout, self.use_rslora
            INITIALISATIONS[self.init](adapted)
        return adapted

    def _special(self) -> dict[str, Any]:
        """The settings in use besides rank and alpha."""
        names = ("dropout", "rank_dropout", "use_rslora", "init", "frobenius", "orthogonality")
        usual = {name: type(self).__dataclass_fields__[name].default for name in names}
        return {name: getattr(self, name) for name in names if getattr(self, name) != usual[name]}

    def initialise_(self, model: nn.Module, run_batches: Callable[[int], None]) -> Adapter:
        if self.init != "eva":
            return self
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        redraw_(layers, partial(run_batches, self.eva_batches), spread=self.eva_spread)
        return replace(self, **patterns(model))

    def alpha_of(self, rank: int) -> float:
        return 16.0 if self.use_rslora and self.alpha is None else super().alpha_of(rank)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "Lora | None":
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            return None
        return cls(**lora_arguments(config, tensors))

    def lr_factor(self, rank: int) -> float:
        is_scaled = self.use_rslora or self.init in ("pissa", "olora")  # these do not begin at a B of zero
        return self.lr_ratio_B * (1.0 if is_scaled else super().lr_factor(rank))

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [(self.frobenius, squared_norm), (self.orthogonality, crosstalk)]
        modules = model.modules() if self.frobenius or self.orthogonality else ()
        layers = [layer for layer in modules if isinstance(layer, LoraLayer) and not isinstance(layer, LoraTwin)]
        parts = [weight * term(layer) for weight, term in terms if weight for layer in layers]
        return sum(parts[1:], parts[0]) if parts else None

    def finish_(self, model: nn.Module) -> Adapter:
        """Turn factors with a start A_0, B_0 into plain factors of twice the rank, which PEFT knows."""
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        if all(layer.start is None for layer in layers):
            return replace(self, init="kaiming") if self.init == "loftq" else self
        for layer in layers:
            layer.join_start_()
        return replace(self, init="kaiming", **patterns(model))

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        config = super().peft_config(model)
        return None if config is None else {**config, "use_rslora": self.use_rslora}
