"""A trained low-rank update at lower ranks, where each layer keeps only its largest directions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.multi.weighted_sum import truncated
from loralight.adapters.spectrum import LayerSpectrum


@contextmanager
@torch.no_grad()
def cut_to(layers: Mapping[str, LoraLayer], ranks: Mapping[str, int]) -> Iterator[None]:
    """A context that replaces each layer's update by the nearest one of its rank in ``ranks`` (Eckart and Young, 1936).

    The factors keep their shapes: the ranks that are cut are zero.
    """
    before = {name: (layer.lora_A.clone(), layer.lora_B.clone()) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            lora_A, lora_B, _ = truncated(*before[name], ranks[name])
            layer.lora_A.zero_()[: len(lora_A)] = lora_A
            layer.lora_B.zero_()[:, : lora_B.shape[1]] = lora_B
        yield
    finally:
        with torch.no_grad():
            for name, (lora_A, lora_B) in before.items():
                layers[name].lora_A.copy_(lora_A)
                layers[name].lora_B.copy_(lora_B)


def alike(spectra: Sequence[LayerSpectrum], rank: int) -> dict[str, int]:
    """The same rank for all layers; a layer whose own rank is lower keeps it."""
    return {layer.name: min(rank, len(layer.values)) for layer in spectra}


def by_energy(spectra: Sequence[LayerSpectrum], rank: int) -> dict[str, int]:
    """The number of directions that `alike` keeps, given to the largest of all layers; a layer may keep none."""
    budget = sum(alike(spectra, rank).values())
    values = sorted(((float(value), layer.name) for layer in spectra for value in layer.values), reverse=True)
    kept = Counter(name for _, name in values[:budget])
    return {layer.name: kept[layer.name] for layer in spectra}


def energy_kept(spectra: Sequence[LayerSpectrum], ranks: Mapping[str, int]) -> float:
    """The fraction of all updates' squared norm that is left at these ranks."""
    squares = {layer.name: layer.values.square() for layer in spectra}
    whole = sum(float(values.sum()) for values in squares.values())
    left = sum(float(values[: ranks[name]].sum()) for name, values in squares.items())
    return left / whole if whole else 1.0
