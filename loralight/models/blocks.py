"""The blocks that a model repeats, the depth of each parameter among them, and the sublayers inside a block."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.errors import InputError
from loralight.models.quantisation import refuse_packed

_CONTAINERS = (nn.ModuleList, nn.Sequential)


def blocks(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The members of stacks, in order: a stack holds modules of one class, and no member holds a stack itself.

    The blocks of BERT, GPT-2 or a vision transformer are its layers; those of a ResNet are the residual blocks of all
    stages.

    Args:
        modules: the model's modules by name.

    Raises:
        InputError: the model repeats nothing (``E-BLOCKS``).
    """
    stacks = {id(module) for module in modules.values() if _is_stack(module)}
    members = {id(member) for module in modules.values() if id(module) in stacks for member in module.children()}
    found = {
        name: module
        for name, module in modules.items()
        if id(module) in members and not any(id(inner) in stacks for inner in module.modules())
    }
    if not found:
        model = type(modules.get("", nn.Module())).__name__
        raise InputError(
            "E-BLOCKS",
            f"{model} has no stack of equal blocks, which this adapter goes by; choose another, such as lora",
        )
    return found


def blocks_in_every_step(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, none if it repeats nothing; a mixture's experts, which rows choose, are part of theirs."""
    modules = {name: module for name, module in model.named_modules() if "experts" not in name.split(".")}
    try:
        return list(blocks(modules).values())
    except InputError:
        return []


def _is_stack(module: nn.Module) -> bool:
    """Whether a container holds blocks: parts of one class, with parts of their own."""
    members = list(module.children())
    return (
        isinstance(module, _CONTAINERS)
        and len({type(member) for member in members}) == 1
        and not isinstance(members[0], _CONTAINERS)
        and any(True for _ in members[0].children())
    )


def depths(model: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """The depth of each parameter, and the greatest depth.

    Depth 0 is before the first block (embeddings), then come the blocks, and last the other layers (norm, pooler,
    head). A parameter that several modules share has the depth of the first of them.
    """
    found = blocks(dict(model.named_modules()))
    of_block = {id(part): number for number, block in enumerate(found.values(), 1) for part in block.modules()}
    depth_of: dict[nn.Parameter, int] = {}
    begun, top = 0, len(found) + 1
    for module in model.modules():  # in the order in which the model defines them
        begun = max(begun, of_block.get(id(module), 0))
        depth = of_block.get(id(module), top if begun == top - 1 else begun)
        for parameter in module.parameters(recurse=False):
            depth_of.setdefault(parameter, depth)
    return depth_of, top


class Sublayers(NamedTuple):
    """The linear layers of a block by sublayer, in the order in which the block defines them.

    Args:
        attention: the layers of each attention, of which the last is its output; empty without attention.
        feed_forward: the other layers: up (and gate), down; empty without a feed-forward network.
    """

    attention: list[list[str]]
    feed_forward: list[str]


def sublayers(modules: Mapping[str, nn.Module], block: str) -> Sublayers:
    """A block's attentions and its feed-forward network.

    A layer belongs to an attention if it lies inside a module whose class is named "...Attention...", as transformers
    and timm name them. Only exact linear layers count, as in `loralight.adapters.targets.resolve`.

    Raises:
        InputError: the block has quantised layers (``E-QUANTIZE``).
    """
    attention: dict[str, list[str]] = {}
    feed_forward: list[str] = []
    inside = [name for name in modules if name.startswith(f"{block}.")]
    refuse_packed(modules, inside)
    for name in (name for name in inside if type(modules[name]) in (nn.Linear, Conv1D)):
        owner = _attention_of(modules, block, name)
        (feed_forward if owner is None else attention.setdefault(owner, [])).append(name)
    return Sublayers(list(attention.values()), feed_forward if _keeps_width(modules, feed_forward) else [])


def _attention_of(modules: Mapping[str, nn.Module], block: str, name: str) -> str | None:
    """The outermost attention in ``block`` that ``name`` lies in."""
    parts = name[len(block) + 1 :].split(".")
    owners = (".".join([block, *parts[:length]]) for length in range(1, len(parts)))
    return next((owner for owner in owners if "Attention" in type(modules[owner]).__name__), None)


def _keeps_width(modules: Mapping[str, nn.Module], names: list[str]) -> bool:
    """Whether the last layer's output is as wide as the first one's input, as a residual connection needs."""
    return len(names) > 1 and widths(modules[names[0]])[0] == widths(modules[names[-1]])[1]


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, which may be GPT-2's ``Conv1D``."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def norms(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The normalisation layers that scale or shift: their class is named "...Norm...", their parameters are vectors."""
    return {
        name: module for name, module in modules.items() if "Norm" in type(module).__name__ and _has_vectors(module)
    }


def _has_vectors(module: nn.Module) -> bool:
    dimensions = [parameter.ndim for parameter in module.parameters(recurse=False)]
    return bool(dimensions) and max(dimensions) == 1
