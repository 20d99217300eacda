"""The LoRA class of each class of layer, and checks for settings that a layer cannot have."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.layers.attention import LoraAttention
from loralight.adapters.layers.embedding import LoraEmbedding, refuse_rescaling
from loralight.adapters.layers.extended import is_read_with_its_update, kind_of_extended
from loralight.adapters.layers.lora import LAYERS, LoraLayer
from loralight.adapters.layers.quantised import LoraQuantisedLinear
from loralight.adapters.layers.slices import SLICED, SLICES
from loralight.errors import InputError
from loralight.models.quantisation import QuantisedLinear

KINDS: dict[type[nn.Module], type[LoraLayer | LoraAttention]] = {
    **LAYERS,
    nn.Embedding: LoraEmbedding,
    QuantisedLinear: LoraQuantisedLinear,
    nn.MultiheadAttention: LoraAttention,
}
"""The LoRA class of each class of layer."""


def kind_of(layer: nn.Module, slices: str | None) -> Any:
    """The LoRA class of a layer; with ``slices``, a class with its own A and B for each of them."""
    if slices is not None:
        return SLICED.get(type(layer), LoraAttention)
    plain: Any = type(layer)
    return KINDS.get(plain) or kind_of_extended(plain)


def check_slices(slices: Mapping[str, str]) -> None:
    """Check the slices of a config before a model is built.

    Raises:
        InputError: a value is not a choice of q, k, v and o (``E-SLICES``).
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


def check(name: str, layer: Any, *, special: Mapping[str, Any], slices: str | None, is_tied: bool) -> None:
    """Check that ``layer`` can be adapted with these settings.

    Args:
        special: the settings in use besides rank and alpha.
        is_tied: whether other layers share its weight.

    Raises:
        InputError: the layer is an embedding that rescales its rows (``E-MAX-NORM``), a setting has nothing to act on
            (``E-LAYER``), or the layer has no such slices (``E-SLICES``).
    """
    refuse_rescaling(name, layer)
    if isinstance(layer, nn.MultiheadAttention | nn.Parameter) or is_read_with_its_update(type(layer)):
        _refuse(name, special, list(special), "is adapted in its weights alone")
    elif isinstance(layer, nn.Embedding) and special.get("init") == "eva":
        _refuse(name, special, ["init"], "takes numbers of tokens, which have no directions")
    elif is_tied:
        _refuse(name, special, ["init"], "shares its weight and its factors with another layer")
    elif slices is not None:
        _refuse(name, special, ["init", "orthogonality"], "has factors for each of its slices")
    if slices is not None and not isinstance(layer, nn.MultiheadAttention):
        _check_fused(name, layer, slices)


def _refuse(name: str, special: Mapping[str, Any], settings: list[str], why: str) -> None:
    if taken := [f"adapter.{setting}={special[setting]}" for setting in settings if setting in special]:
        raise InputError(
            "E-LAYER",
            f"{name} {why}, for which there is no {taken[0]}: leave that setting as it is by default, or the layer "
            f"out, as by adapter.exclude=[{name}]",
        )


def _check_fused(name: str, layer: Any, slices: str) -> None:
    """Check that a layer joins three projections, each as wide as its input.

    Other widths (grouped queries) would move the borders between them.
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
