"""LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from loralight.adapters.base import Adapter
from loralight.adapters.eva import redraw_
from loralight.adapters.initialisation import INITIALISATIONS
from loralight.adapters.lora_layers import LAYERS, LoraLayer
from loralight.adapters.low_rank import LowRankAdapter, check_probability, check_rank, patterns
from loralight.adapters.penalties import crosstalk, squared_norm
from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lora(LowRankAdapter):
    """Low-rank updates ``scaling B A`` of frozen weights.

    Args:
        alpha: the update is scaled by ``alpha / rank``, or by ``alpha / sqrt(rank)`` with ``use_rslora``; 2 x rank if
            None, and 16 at every rank with ``use_rslora``, whose point is that the rank does not move it.
        use_rslora: scale by ``alpha / sqrt(rank)``, under which the size of a step does not shrink as the rank grows
            (rsLoRA, Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
        rank_dropout: probability with which a rank is dropped, from the whole batch; the others are scaled up. As in
            LyCORIS (Yeh et al., 2023, https://arxiv.org/abs/2309.14859).
        init: how A and B start, see `loralight.adapters.initialisation`. ``pissa`` and ``olora`` start at large
            factors and want a lower ``lr`` (PiSSA's authors train at 2e-5). ``eva`` looks at training data first and
            deals the ranks anew, see `loralight.adapters.eva`.
        eva_batches: how many training batches ``eva`` looks at.
        eva_spread: how many times its own rank a layer may get from ``eva``; 1 leaves all ranks as they are.
        frobenius: weight of a penalty on the updates, the sum of the squared Frobenius norms of ``scaling B A``.
        orthogonality: weight of a penalty on ranks that overlap, see `loralight.adapters.penalties.crosstalk`.
        lr_ratio_B: B's learning rate over A's (LoRA+, Hayou et al., 2024, https://arxiv.org/abs/2402.12354).
    """

    use_rslora: bool = False
    rank_dropout: float = 0.0
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"] = "kaiming"
    eva_batches: int = 8
    eva_spread: float = 2.0
    frobenius: float = 0.0
    orthogonality: float = 0.0
    lr_ratio_B: float = 1.0

    layers: ClassVar[Mapping[type[nn.Module], type[LoraLayer]]] = LAYERS

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def adapt_(self, layer: nn.Module, *, rank: int, alpha: float) -> LoraLayer:
        adapted = super().adapt_(layer, rank=rank, alpha=alpha)
        adapted.rank_dropout, adapted.use_rslora = self.rank_dropout, self.use_rslora
        INITIALISATIONS[self.init](adapted)
        return adapted

    def initialise_(self, model: nn.Module, run_batches: Callable[[int], None]) -> Adapter:
        if self.init != "eva":
            return self
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        redraw_(layers, partial(run_batches, self.eva_batches), spread=self.eva_spread)
        return replace(self, **patterns(model))

    def alpha_of(self, rank: int) -> float:
        return 16.0 if self.use_rslora and self.alpha is None else super().alpha_of(rank)

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        factors = [layer.lora_B for layer in model.modules() if isinstance(layer, LoraLayer)]
        return {factor: self.lr_ratio_B for factor in factors if isinstance(factor, nn.Parameter)}

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [(self.frobenius, squared_norm), (self.orthogonality, crosstalk)]
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        parts = [weight * term(layer) for weight, term in terms if weight for layer in layers]
        return sum(parts[1:], parts[0]) if parts else None

    def finish_(self, model: nn.Module) -> Adapter:
        """Make factors with a start plain ones of twice the rank, which PEFT knows."""
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        if all(layer.start is None for layer in layers):
            return self
        for layer in layers:
            layer.join_start_()
        return replace(self, init="kaiming", **patterns(model))

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        config = super().peft_config(model)
        return None if config is None else {**config, "use_rslora": self.use_rslora}
