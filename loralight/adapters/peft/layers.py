"""Layers of PEFT's inside a model: which there are, what they keep, and the way back to plain layers."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from loralight.errors import InputError

_SAMPLE = 256  # values of a weight that are looked at


def merge_layers_(model: nn.Module) -> None:
    """Have every layer of PEFT's put its update into the plain one inside, which takes its place again.

    Raises:
        InputError: one of them cannot (``E-MERGE``); the model is as it was.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        try:
            copy.deepcopy(layer).merge(safe_merge=True)  # one at a time, so that a refusal comes before any change
        except Exception as error:  # PEFT raises what it likes
            kind = type(layer).__name__
            raise InputError("E-MERGE", f"PEFT cannot merge {name} ({kind}): {' '.join(str(error).split())}") from error
    for name, layer in layers.items():
        layer.merge()
        model.set_submodule(name, plain(layer).requires_grad_(False))
    if layers:
        del model.peft_config


def plain(layer: Any) -> nn.Module:
    """The layer inside one of PEFT's."""
    found: nn.Module = layer.get_base_layer()
    return found


def sample(layer: nn.Module) -> dict[str, Tensor]:
    """Some values of a layer's own parameters."""
    return {
        name: p.detach().flatten()[:: max(1, p.numel() // _SAMPLE)].clone()
        for name, p in layer.named_parameters(recurse=False)
    }


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether a layer that was `before` still has those values."""
    return all(name in after and torch.equal(tensor, after[name]) for name, tensor in before.items())


def kept(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that PEFT would save of a model's adapter, by PEFT's names."""
    from peft import get_peft_model_state_dict

    kept: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return kept
