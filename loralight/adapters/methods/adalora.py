"""AdaLoRA: Zhang et al., 2023, https://arxiv.org/abs/2303.10512."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.adalora import ADALORA_LAYERS, AdaLoraLayer
from loralight.adapters.methods.lora import Lora
from loralight.adapters.methods.low_rank import (
    check_alpha,
    check_probability,
    check_rank,
    choose,
    patterns,
    refuse_excess,
)
from loralight.adapters.targets import excluding
from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class AdaLora(Adapter):
    """LoRA that starts with more ranks than it may keep, and learns which layers need them.

    Training has three phases. First all ranks are trained. Then every ``interval`` steps the least important ranks are
    set to zero, so that fewer and fewer are left; a cut rank may recover. Finally the remaining ranks are trained. A
    trained adapter is saved as plain LoRA in which each layer has its own rank.

    Args:
        targets: which layers, as for `Lora`.
        rank: mean rank of a layer at the end.
        initial_rank: rank of each layer at first.
        alpha: the update is scaled by ``alpha / initial_rank``, whatever is cut; 2 x initial_rank if None.
        dropout: probability with which an input of the low-rank path is dropped.
        exclude: patterns of layers that stay as they are although ``targets`` choose them.
        initial: fraction of the run's steps before the first cut; about 0.1 in the authors' GLUE runs.
        final: fraction of the run's steps after the last cut; about 0.5 in the authors' GLUE runs.
        interval: number of steps between cuts.
        beta1: fraction of an element's mean sensitivity that is kept at a step.
        beta2: fraction of an element's mean uncertainty that is kept at a step.
        orthogonality: weight of the penalty that keeps the columns of P and the rows of Q orthonormal: the mean over
            these matrices of ``||Q Q^T - I||_F``, as in the authors' code (eq. 4 has squares and a sum).
        lr: learning rate per step; 5e-4 to 1.2e-3 in the authors' GLUE runs.
    """

    targets: str | Sequence[str]
    rank: int = 8
    initial_rank: int = 12
    alpha: float | None = None
    dropout: float = 0.0
    exclude: str | Sequence[str] = ()
    initial: float = 0.1
    final: float = 0.5
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.1
    lr: float = 1e-3

    def __post_init__(self) -> None:
        check_rank("rank", self.rank)
        check_rank("initial_rank", self.initial_rank)
        check_rank("interval", self.interval)
        check_probability("dropout", self.dropout)
        if self.alpha is not None:
            check_alpha("alpha", self.alpha)
        if self.rank > self.initial_rank:
            raise InputError(
                "E-RANK",
                f"adapter.rank={self.rank} is above adapter.initial_rank={self.initial_rank}: there would be nothing "
                "to cut; raise initial_rank, to 1.5 x rank say",
            )
        if not (self.initial >= 0 and self.final >= 0 and self.initial + self.final < 1):
            raise InputError(
                "E-SCHEDULE",
                f"adapter.initial={self.initial} and adapter.final={self.final} are shares of the run that leave no "
                "steps between them to cut ranks in; give two that add up to less than 1",
            )
        for name, beta in {"beta1": self.beta1, "beta2": self.beta2}.items():
            if not 0 < beta < 1:
                raise InputError("E-BETA", f"adapter.{name} is {beta!r}; give a number between 0 and 1, such as 0.85")
        if not 0 <= self.orthogonality < math.inf:
            raise InputError(
                "E-PENALTY", f"adapter.orthogonality is {self.orthogonality!r}; give a weight of at least 0"
            )

    def without(self, names: Collection[str]) -> Self:
        return replace(self, exclude=excluding(self.exclude, names))

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        hits, names = choose(model, candidates, self.targets, types=tuple(ADALORA_LAYERS), exclude=self.exclude)
        alpha = float(2 * self.initial_rank if self.alpha is None else self.alpha)
        for name in names:
            kind = ADALORA_LAYERS[type(candidates[name])]
            kind.upgrade_(candidates[name], rank=self.initial_rank, alpha=alpha, dropout=self.dropout)
        return hits

    def check_training(self, model: nn.Module) -> None:
        refuse_excess({"initial_rank": self.initial_rank}, model, tuple(ADALORA_LAYERS))

    def penalty(self, model: nn.Module) -> Tensor | None:
        if not self.orthogonality:
            return None
        layers = _layers(model)
        matrices = [m for layer in layers for m in (layer.lora_Q.flatten(1), layer.lora_P.flatten(1).T)]
        strays = [torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m)).to(m)) for m in matrices]
        return self.orthogonality * torch.stack(strays).mean()

    def after_step_(self, model: nn.Module, *, step: int, num_steps: float) -> None:
        if num_steps == math.inf:
            raise InputError(
                "E-STEPS", "adalora needs to know where the run ends; set trainer.max_epochs or trainer.max_steps"
            )
        layers, last = _layers(model), round((1 - self.final) * num_steps)
        if step <= last:
            for layer in layers:
                layer.observe_(self.beta1, self.beta2)
        first = round(self.initial * num_steps)
        if step == last or (first < step < last and step % self.interval == 0):
            _choose(layers, self.budget((step - first) / max(last - first, 1), len(layers)))
        if step >= last:
            for layer in layers:
                layer.cut_()

    def budget(self, progress: float, num_layers: int) -> int:
        """The number of ranks for all layers together, at ``progress`` (0 to 1) towards the last cut (eq. 12)."""
        end, start = self.rank * num_layers, self.initial_rank * num_layers
        return int(end + (start - end) * (1 - progress) ** 3)

    def finish_(self, model: nn.Module) -> Adapter:
        for layer in _layers(model):
            layer.become_lora_()
        kept = {name: getattr(self, name) for name in ("targets", "rank", "alpha", "dropout", "exclude", "lr")}
        return Lora(**kept, **patterns(model))


def _layers(model: nn.Module) -> list[AdaLoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, AdaLoraLayer)]


def _choose(layers: list[AdaLoraLayer], budget: int) -> None:
    """Keep the ``budget`` most important triplets of all layers, and cut the others."""
    scores = torch.cat([layer.importance() for layer in layers])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(budget).indices] = True
    for layer, part in zip(layers, torch.split(chosen, [layer.rank for layer in layers]), strict=True):
        layer.chosen.copy_(part)
        layer.cut_()
