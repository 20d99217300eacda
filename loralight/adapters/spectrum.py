"""The trained updates of an adapter, layer by layer: their size and the number of their directions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraLayer


class LayerSpectrum(NamedTuple):
    """The singular values of a layer's low-rank update ``scaling B A``, and the norm of its frozen weight.

    For DoRA this is the update of the direction, before the magnitude rescales it.

    Shapes: values (rank,), largest first.
    """

    name: str
    values: Tensor
    weight_norm: float

    @property
    def norm(self) -> float:
        """The update's Frobenius norm."""
        return float(self.values.norm())

    @property
    def relative_norm(self) -> float:
        """The update's norm over the weight's."""
        return self.norm / self.weight_norm if self.weight_norm else float("inf")

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the values' shares (Roy and Vetterli, 2007, "The effective rank").

        It is n for n equal values and approaches 1 as one value dominates; 0 for an update that is zero.
        """
        if not self.values.any():
            return 0.0
        shares = self.values / self.values.sum()
        return float(torch.special.entr(shares).sum().exp())

    def rank_for(self, energy: float) -> int:
        """The lowest rank, at least 1, that keeps this fraction of the squared norm."""
        kept = self.values.square().cumsum(0)
        return min(int((kept < energy * kept[-1] * (1 - 1e-12)).sum()) + 1, len(self.values))


@torch.no_grad()
def spectrum(model: nn.Module) -> list[LayerSpectrum]:
    """The spectrum of each low-rank layer, in the model's order; no matrix of a weight's size is formed."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return [
        LayerSpectrum(name, singular_values(*layer.update_factors()) * layer.scaling, float(layer.weight.norm()))
        for name, layer in layers.items()
    ]


def singular_values(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """The singular values of ``B A``: with ``B = Q R`` and ``A^T = Q' R'`` they are those of ``R R'^T``.

    Shapes: lora_A (rank, in), lora_B (out, rank); the result is (at most rank,), in double precision.
    """
    _, of_b = torch.linalg.qr(lora_B.double())
    _, of_a = torch.linalg.qr(lora_A.double().T)
    values: Tensor = torch.linalg.svdvals(of_b @ of_a.T)
    return values


def proposed_overrides(layers: Sequence[LayerSpectrum], energy: float) -> list[str]:
    """Command-line settings for a run whose ranks keep the fraction ``energy`` of each update's squared norm."""
    ranks = {layer.name: layer.rank_for(energy) for layer in layers}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = ",".join(f"{name}:{rank}" for name, rank in _exceptions(ranks, common).items())
    return [f"adapter.rank={common}", *([f"'adapter.rank_pattern={{{pattern}}}'"] if pattern else [])]


def _exceptions(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """The layers to name: those with another rank, and those whose name ends in the name of such a layer.

    A name in a pattern also matches the end of longer names, and the last matching pattern counts.
    """
    others = [name for name, rank in ranks.items() if rank != common]
    named = [name for name in ranks if name in others or name.endswith(tuple(f".{other}" for other in others))]
    return {name: ranks[name] for name in sorted(named, key=lambda name: name.count("."))}
