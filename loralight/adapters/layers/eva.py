"""EVA: A starts at the directions in which a layer's inputs vary (Paischer et al., 2024, https://arxiv.org/abs/2410.07170).

Layers whose inputs vary in more directions get more of the ranks. Unlike in the paper, the inputs are not centred,
since an update acts on them as they are; they include padding; the number of batches is fixed, whether the directions
have converged or not; and every layer keeps at least one rank.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraConv1D, LoraLayer, LoraLinear
from loralight.errors import InputError

_OVERSAMPLING = 8
"""Additional directions that are tracked, so that the chosen ones are more exact."""


class _Inputs:
    """The directions in which the inputs of a layer are largest, batch by batch (an incremental SVD)."""

    def __init__(self, count: int) -> None:
        self.count, self.total = count, 0.0
        self.rows: Tensor | None = None  # S V^T, (at most count + oversampling, in)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2).float()
        self.total += float(x.square().sum())
        stack = x if self.rows is None else torch.cat([self.rows, x])
        size = min(self.count + _OVERSAMPLING, *stack.shape)
        _, s, v = torch.svd_lowrank(stack, q=size, niter=4)
        self.rows = s[:, None] * v.T

    def directions(self, name: str) -> tuple[Tensor, list[float]]:
        """The directions, (count, in), and the fraction of the inputs' squared norm in each.

        Raises:
            InputError: no batch has reached the layer (``E-UNREACHED``).
        """
        if self.rows is None:
            raise InputError("E-UNREACHED", f"init=eva: no batch reaches {name}; exclude it, with adapter.exclude")
        rows = self.rows[: self.count]
        return F.normalize(rows, dim=1), (rows.square().sum(1) / max(self.total, 1e-30)).tolist()


def redraw_(layers: Mapping[str, LoraLayer], run_batches: Callable[[], None], *, spread: float) -> None:
    """Start each layer's A at the directions of its inputs, and redistribute the ranks; B stays zero.

    Args:
        layers: layers by name.
        run_batches: runs the model on some data.
        spread: the largest multiple of its own rank that a layer may get.

    Raises:
        InputError: a layer is not linear (``E-INIT``), or no batch reaches it (``E-UNREACHED``).
    """
    if others := [name for name, layer in layers.items() if not isinstance(layer, LoraLinear | LoraConv1D)]:
        raise InputError("E-INIT", f"init=eva looks at inputs of linear layers; leave out {', '.join(others[:3])}")
    seen = {name: _Inputs(max(1, int(spread * layer.rank))) for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(seen[name]).remove)
        run_batches()
    found = {name: inputs.directions(name) for name, inputs in seen.items()}
    ranks = deal({name: shares for name, (_, shares) in found.items()}, sum(layer.rank for layer in layers.values()))
    for name, layer in layers.items():
        _restart(layer, found[name][0][: ranks[name]])


def deal(shares: Mapping[str, list[float]], budget: int) -> dict[str, int]:
    """Distribute ``budget`` ranks: one to each layer, the others to the directions with the largest shares."""
    rest = sorted(((share, name) for name, found in shares.items() for share in found[1:]), reverse=True)
    chosen = [name for _, name in rest[: max(0, budget - len(shares))]]
    return {name: 1 + chosen.count(name) for name in shares}


def _restart(layer: LoraLayer, directions: Tensor) -> None:
    """Give ``layer`` these directions as rows of A and a B of zeros, with its scaling as before."""
    scaling, layer.rank = layer.scaling, len(directions)
    layer.alpha *= scaling / layer.scaling
    layer.lora_A = nn.Parameter(directions.to(layer.lora_A.dtype).contiguous())
    layer.lora_B = nn.Parameter(layer.lora_B.new_zeros(len(layer.lora_B), layer.rank))
