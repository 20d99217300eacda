"""What each class of layer becomes when LoRA adapts it, and what cannot be adapted so."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.lora_attention import LoraAttention
from loralight.adapters.lora_embedding import LoraEmbedding
from loralight.adapters.lora_experts import adapt_experts_
from loralight.adapters.lora_layers import LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d, LoraLayer, LoraLinear
from loralight.adapters.lora_slices import SLICED, SLICES
from loralight.errors import InputError

LAYERS: dict[type[nn.Module], type[LoraLayer | LoraAttention]] = {
    layer.plain: layer
    for layer in (LoraLinear, LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d, LoraEmbedding, LoraAttention)
}
"""What each class of layer becomes."""


def check_slices(slices: Mapping[str, str]) -> None:
    """Check what a config says of slices, before there is a model.

    Raises:
        InputError: a value is no choice of q, k, v and o (``E-SLICES``).
    """
    for pattern, chosen in slices.items():
        if (
            not isinstance(chosen, str)
            or not chosen
            or set(chosen) - set(f"{SLICES}o")
            or len(set(chosen)) < len(chosen)
        ):
            raise InputError(
                "E-SLICES",
                f"adapter.slices[{pattern}] is {chosen!r}; give the letters of the projections to adapt, such as qv "
                "for queries and values",
            )


def check(name: str, layer: Any, *, dropout: float, slices: str | None) -> None:
    """Check that ``layer`` can be adapted as it is asked for.

    Raises:
        InputError: it is an embedding that rescales its rows (``E-MAX-NORM``), dropout has no input to act on
            (``E-DROPOUT``), or it has no such slices (``E-SLICES``).
    """
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        raise InputError(
            "E-MAX-NORM",
            f"{name} has max_norm={layer.max_norm}: it would rescale its frozen rows without their updates; leave it "
            f"out, with adapter.exclude=[{name}] say",
        )
    if dropout and isinstance(layer, nn.MultiheadAttention | nn.Parameter):
        raise InputError(
            "E-DROPOUT",
            f"adapter.dropout is {dropout}, which drops inputs of a layer, but {name} is adapted in its weights alone; "
            f"set adapter.dropout=0, or leave it out, with adapter.exclude=[{name}] say",
        )
    if slices is not None and not isinstance(layer, nn.MultiheadAttention):
        _check_fused(name, layer, slices)


def _check_fused(name: str, layer: Any, slices: str) -> None:
    """Check that a layer is three projections in one, each as wide as its input.

    Other widths (grouped queries) would put the borders elsewhere.
    """
    if type(layer) not in SLICED:
        raise InputError("E-SLICES", f"adapter.slices: {name} ({type(layer).__name__}) has no slices; leave it out")
    out, width = layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape
    if "o" in slices or out != len(SLICES) * width:
        raise InputError(
            "E-SLICES",
            f"adapter.slices: {name} takes {width} numbers and gives {out}; {slices!r} can only be told apart in a "
            "layer that gives three times what it takes, and o only in nn.MultiheadAttention. Leave it out",
        )


def upgrade_(
    candidates: Mapping[str, Any], name: str, *, rank: int, alpha: float, dropout: float, slices: str | None
) -> None:
    """Adapt the layer, or the weight of experts, called ``name``; in place."""
    layer = candidates[name]
    if isinstance(layer, nn.Parameter):
        owner, _, weight = name.rpartition(".")
        adapt_experts_(candidates[owner], weight, rank=rank, alpha=alpha)
    elif slices is None:
        LAYERS[type(layer)].upgrade_(layer, rank=rank, alpha=alpha, dropout=dropout)
    else:
        kind: Any = SLICED.get(type(layer), LoraAttention)
        kind.upgrade_(layer, slices=slices, rank=rank, alpha=alpha, dropout=dropout)
