"""What an adapter changes in a model, where that can be told layer by layer."""

from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from loralight.adapters.layers.lora import LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d, LoraLayer, LoraLinear
from loralight.adapters.layers.quantised import LoraQuantisedLinear
from loralight.errors import InputError

ADDITIVE: tuple[type[LoraLayer], ...] = (
    *(LoraLinear, LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d),
    LoraQuantisedLinear,
)
"""The layers that compute what the plain layer does, plus ``scaling * low_rank(dropout(x))``, each row by itself."""


class Parts(NamedTuple):
    """The changed modules of an adapted model, by name.

    Args:
        updates: layers with a low-rank update.
        whole: modules that the adapter brings as a whole: its head, and BatchNorm layers that changed.
    """

    updates: dict[str, LoraLayer]
    whole: dict[str, nn.Module]


def parts_of(model: nn.Module, whole: Collection[str]) -> Parts:
    """What an adapter changes in ``model``.

    Args:
        model: the adapted model.
        whole: names of the modules that the adapter brings as a whole.

    Raises:
        InputError: something else learns too (``E-KIND``).
    """
    modules = {name: model.get_submodule(name) for name in whole}
    inside = {id(part) for module in modules.values() for part in module.modules()}
    updates: dict[str, LoraLayer] = {}
    for name, module in model.named_modules():
        learns = {key for key, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
        if not learns or id(module) in inside:
            continue
        if type(module) not in ADDITIVE or learns != {"lora_A", "lora_B"}:
            kinds = ", ".join(kind.__name__ for kind in ADDITIVE)
            raise InputError(
                "E-KIND",
                f"{name} is a {type(module).__name__} in which {', '.join(sorted(learns))} learn; mixing rows and "
                f"combining adapters are defined for {kinds}. Each adapter still works by itself",
            )
        assert isinstance(module, LoraLayer)
        updates[name] = module
    return Parts(updates, modules)
