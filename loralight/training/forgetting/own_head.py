"""The head that a base model had when it was pretrained, on the layers of a task as these are now."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from loralight.errors import InputError
from loralight.models.dtypes import single_by_default
from loralight.models.fresh import watching_origins
from loralight.models.pretrained import load_model, outside_base_model
from loralight.training.task import AdapterTask


def checkpoint_of(task: AdapterTask) -> str:
    """The name of the task's base model, from its argument ``checkpoint``.

    Raises:
        InputError: its model is not one of transformers, or the task does not say where it is from
            (``E-FORGETTING``).
    """
    checkpoint = task.arguments.get("checkpoint")
    if not isinstance(task.model, PreTrainedModel) or not isinstance(checkpoint, str):
        raise InputError(
            "E-FORGETTING",
            f"this probe reads texts by a model of transformers, whose name the task's checkpoint= says; "
            f"{type(task).__name__} has a {type(task.model).__name__}. Choose another probe, or leave out forgetting=",
        )
    return checkpoint


def with_own_head(auto_class: Any, task: AdapterTask) -> nn.Module:
    """The pretrained model with its own head, and the task's layers in place of its layers.

    The layers are shared: whatever they learn, and an adapter that is switched off, holds in both.

    Args:
        auto_class: loads the pretrained model, such as ``AutoModelForMaskedLM``.
        task: with its model on its device.

    Raises:
        InputError: the checkpoint has no weights for such a head (``E-FORGETTING``), or there is no such model
            (``E-MODEL``).
    """
    checkpoint = checkpoint_of(task)
    with single_by_default(), watching_origins() as origins:
        model: nn.Module = load_model(auto_class, checkpoint)
    assert isinstance(model, PreTrainedModel)
    heads = outside_base_model(model)
    of_heads = {id(parameter) for part in heads for parameter in part.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in of_heads}
    if fresh := sorted(origins.fresh(model) & names):
        raise InputError(
            "E-FORGETTING",
            f"{checkpoint} has no weights for the head of a {type(model).__name__} ({fresh[0]}), so that there is no "
            "such loss to measure. forgetting=features measures by how much its features move",
        )
    lend_(model, heads, task)
    model.tie_weights()
    model.train(False)
    return model


def lend_(whole: nn.Module, heads: Sequence[nn.Module], task: AdapterTask) -> None:
    """Replace all parts of ``whole`` but its heads by the task's parts of the same names, which both then have.

    Args:
        whole: another model on the same base.
        heads: the parts of ``whole`` that stay.
        task: its accelerations are set aside.

    Raises:
        InputError: the task's model lacks a part, or its adapter acts on a part that has one of the heads inside
            (``E-FORGETTING``).
    """
    like = next(parameter for parameter in task.model.parameters() if parameter.is_floating_point())
    for part in heads:
        part.to(like.device, like.dtype)
    _lend_(whole, task.model, {part for head in heads for part in head.modules()})
    kept = {id(tensor) for part in heads for tensor in part.parameters()}
    lent = {id(tensor) for tensor in task.model.parameters()}
    if missing := [name for name, tensor in whole.named_parameters() if id(tensor) not in lent | kept]:
        raise InputError(
            "E-FORGETTING",
            f"the task's {type(task.model).__name__} has no {missing[0]}, which {type(whole).__name__} reads: they are "
            "not of one base model",
        )


def _lend_(whole: nn.Module, of: nn.Module, heads: set[nn.Module]) -> None:
    """Lend parts, and of those that have heads inside, their parts."""
    if of._forward_pre_hooks or of._forward_hooks:
        raise InputError(
            "E-FORGETTING",
            f"the adapter acts on a whole {type(of).__name__}, of which only parts can be lent to another head: choose "
            "another probe or another adapter",
        )
    for name, mine in whole.named_children():
        part = getattr(of, name, None)
        if mine in heads or not isinstance(part, nn.Module):
            continue
        if any(inner in heads for inner in mine.modules()):
            _lend_(mine, part, heads)
        else:
            setattr(whole, name, part)
    for parameters, others in ((whole._parameters, of._parameters), (whole._buffers, of._buffers)):
        for name in parameters.keys() & others.keys():
            setattr(whole, name, others[name])
