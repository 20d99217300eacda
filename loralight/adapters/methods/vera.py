"""VeRA: Kopiczko et al., 2023, https://arxiv.org/abs/2310.11454."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.vera import VERA_LAYERS, upgrade_
from loralight.adapters.methods.low_rank import check_probability, check_rank, choose
from loralight.adapters.targets import excluding


@dataclass(frozen=True, kw_only=True)
class Vera(Adapter):
    """Two trained vectors for each linear layer, which scale a pair of random matrices that all layers share.

    In the paper layers of the same shape share matrices. Here, as in PEFT, all layers do, and a smaller layer uses a
    part of them. The matrices are saved with the adapter, so that it never depends on how random numbers are drawn;
    they take 4 bytes x rank x (the largest input + the largest output).

    Args:
        targets: patterns of the linear layers to adapt, as for `Lora`.
        rank: rows of A and columns of B. A and B are not trained, so it may be large: 256 to 1024 in the paper.
        dropout: probability with which an input of the low-rank path is dropped.
        d_initial: initial value of each element of d.
        exclude: patterns of layers that stay as they are although ``targets`` choose them.
        lr: learning rate per step; several times LoRA's, as so few parameters have further to go.
    """

    targets: str | Sequence[str]
    rank: int = 256
    dropout: float = 0.0
    d_initial: float = 0.1
    exclude: str | Sequence[str] = ()
    lr: float = 4e-3

    def __post_init__(self) -> None:
        check_rank("rank", self.rank)
        check_probability("dropout", self.dropout)

    def without(self, names: Collection[str]) -> Self:
        return replace(self, exclude=excluding(self.exclude, names))

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        hits, names = choose(model, candidates, self.targets, types=tuple(VERA_LAYERS), exclude=self.exclude)
        layers = [candidates[name] for name in names]
        upgrade_(layers, rank=self.rank, dropout=self.dropout, d_initial=self.d_initial)
        return hits
