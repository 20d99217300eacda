"""The changes that an adapter makes in a model, for methods that change a model layer by layer."""

from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from loralight.adapters.layers.lora import LoraLayer
from loralight.errors import InputError


class Parts(NamedTuple):
    """The changed modules of an adapted model, by name.

    Args:
        updates: layers with a low-rank update.
        whole: modules that the adapter brings as a whole: its head, and BatchNorm layers that changed.
    """

    updates: dict[str, LoraLayer]
    whole: dict[str, nn.Module]


def parts_of(model: nn.Module, whole: Collection[str]) -> Parts:
    """The changes that an adapter makes in ``model``.

    Args:
        model: the adapted model.
        whole: names of the modules that the adapter brings as a whole.

    Raises:
        InputError: other parameters are trainable too (``E-KIND``).
    """
    modules = {name: model.get_submodule(name) for name in whole}
    inside = {id(part) for module in modules.values() for part in module.modules()}
    updates: dict[str, LoraLayer] = {}
    for name, module in model.named_modules():
        learns = {key for key, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
        if not learns or id(module) in inside:
            continue
        if not (isinstance(module, LoraLayer) and module.is_additive and learns == {"lora_A", "lora_B"}):
            raise InputError(
                "E-KIND",
                f"{name} is a {type(module).__name__} in which {', '.join(sorted(learns))} learn; mixing rows and "
                "combining adapters are defined for linear layers and convolutions in which A and B alone learn. Each "
                "adapter still works by itself",
            )
        updates[name] = module
    return Parts(updates, modules)
