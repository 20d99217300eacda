"""PEFT's layers inside a model: merging them, their saved tensors, and the plain layers inside them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from loralight.errors import InputError

_SAMPLE = 256  # values of a weight that are looked at


def merge_layers_(model: nn.Module) -> None:
    """Have each of PEFT's layers merge its update into the plain layer inside, which takes its place again.

    Raises:
        InputError: a layer cannot be merged (``E-MERGE``); the model is then unchanged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        try:
            copy.deepcopy(layer).merge(safe_merge=True)  # one at a time, so that a refusal comes before any change
        except Exception as error:  # PEFT may raise anything
            kind = type(layer).__name__
            raise InputError("E-MERGE", f"PEFT cannot merge {name} ({kind}): {' '.join(str(error).split())}") from error
    for name, layer in layers.items():
        layer.merge()
        model.set_submodule(name, plain(layer).requires_grad_(False))
    if layers:
        del model.peft_config


def plain(layer: Any) -> nn.Module:
    """The plain layer inside a layer of PEFT's."""
    found: nn.Module = layer.get_base_layer()
    return found


def sample(layer: nn.Module) -> dict[str, Tensor]:
    """Some values of a layer's own parameters."""
    return {
        name: p.detach().flatten()[:: max(1, p.numel() // _SAMPLE)].clone()
        for name, p in layer.named_parameters(recurse=False)
    }


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether a layer still has the values ``before``."""
    return all(name in after and torch.equal(tensor, after[name]) for name, tensor in before.items())


def kept(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that PEFT would save for a model's adapter, by PEFT's names."""
    from peft import get_peft_model_state_dict

    kept: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return kept
