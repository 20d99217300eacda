"""Gradient checkpointing: activations inside a model's blocks are recomputed in the backward pass, not kept."""

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from loralight.acceleration.base import Acceleration, Facts
from loralight.adapters.disabled import as_computed, is_off
from loralight.errors import InputError


@runtime_checkable
class _OfTimm(Protocol):
    def set_grad_checkpointing(self, enable: bool = True) -> None: ...


class GradientCheckpointing(Acceleration):
    """Gradient checkpointing: a fraction of the memory for a third more time; see `recompute_`."""

    needs_whole_weights = False
    excludes = frozenset({"selective_recompute"})  # checkpointing leaves nothing for it to recompute

    def __init__(self) -> None:
        self._is_on = False

    def start_(self, facts: Facts) -> str | None:
        recompute_(facts.model, facts.still)
        self._is_on = True
        return None

    def detach_(self, model: nn.Module) -> None:
        if self._is_on:
            _switch_off_(_parts(model)[0])


def recompute_(model: nn.Module, still: Collection[nn.Module]) -> None:
    """Have ``model`` recompute its blocks by its library's own switch; gradients are the same bit for bit.

    Args:
        model: as it will be trained.
        still: modules that training leaves in evaluation mode.

    Raises:
        InputError: its class has no such switch, or the switch would do nothing or change the results
            (``E-RECOMPUTE``).
    """
    parts = _parts(model)
    if not parts:
        raise _refused(f"{type(model).__name__} is no model of transformers or timm, whose switch is used")
    try:
        _switch_on_(parts[0])
    except (AssertionError, ValueError) as error:
        raise _refused(f"{type(parts[0]).__name__} does not recompute its blocks") from error
    kept = {id(module) for module in still}
    if any(id(module) in kept and getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise _refused(
            "transformers recomputes blocks in training mode alone, in which task.base_dropout=false does not put "
            "them; set the dropouts of the model's config to 0 instead"
        )
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if any(norm.training and id(norm) not in kept for norm in norms):
        raise _refused("BatchNorm that follows the data would count each batch twice")


def _parts(model: nn.Module) -> list[Any]:
    """The models of transformers and timm in a model, the outermost first."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel | _OfTimm)]


def _switch_off_(part: Any) -> None:
    if not isinstance(part, PreTrainedModel):
        part.set_grad_checkpointing(False)
        for number in [number for number, hook in part._forward_pre_hooks.items() if hook is _refuse_without_adapter]:
            del part._forward_pre_hooks[number]
        return
    switch: Any = getattr(part, "activation_checkpointing_disable", None) or part.gradient_checkpointing_disable
    switch()


def _switch_on_(part: Any) -> None:
    if not isinstance(part, PreTrainedModel):
        part.set_grad_checkpointing(True)
        part.register_forward_pre_hook(_refuse_without_adapter)
        return
    switch: Any = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    for module in part.modules():
        if getattr(module, "gradient_checkpointing", False):
            vars(module)["_gradient_checkpointing_func"] = _checkpoint
    # newer versions make the embeddings' output require gradients, at the cost of all blocks below the lowest adapter
    part.disable_input_require_grads()  # type: ignore[no-untyped-call]


def _checkpoint(function: Any, *args: Any) -> Any:
    """Recompute with the adapter on or off as in the forward pass; a compiler accepts no such context."""
    told: Any = {} if torch.compiler.is_compiling() else {"context_fn": as_computed}
    return checkpoint(function, *args, use_reentrant=False, **told)


def _refuse_without_adapter(part: nn.Module, _: Any) -> None:
    """Refuse a pass with the adapter off, which would be recomputed with it on: timm's checkpoints take no context."""
    if torch.is_grad_enabled() and is_off(part):
        raise InputError(
            "E-DISABLED",
            "acceleration=gradient_checkpointing computes a model of timm again with its adapter; switch the adapter "
            "off within torch.no_grad(), or leave the acceleration out",
        )


def _refused(why: str) -> InputError:
    return InputError("E-RECOMPUTE", f"acceleration=gradient_checkpointing: {why}. Leave it out")
