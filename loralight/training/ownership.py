"""Checks that only parts of a task's model are trainable."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch import nn
from torchmetrics import Metric

from loralight.adapters.base import trainable
from loralight.errors import InputError


def check_head(model: nn.Module, head: Any, where: str) -> list[nn.Module]:
    """The head's parts, after checking that they are parts of the model.

    Args:
        head: the value of a task's ``head``.
        where: the task's class, for the message.

    Raises:
        InputError: ``head`` is not a sequence of modules, or a module is not a part of the model, is named twice, lies
            in another one, or is the model itself (``E-HEAD``).
    """
    if not isinstance(head, Sequence) or not all(isinstance(part, nn.Module) for part in head):
        raise InputError("E-HEAD", f"{where}.head() returned {_short(head)}; return a list of modules of the model")
    names = {id(module): name for name, module in model.named_modules()}
    if outside := [part for part in head if id(part) not in names]:
        raise InputError(
            "E-HEAD",
            f"{where}.head() returned a {type(outside[0]).__name__} that is no part of the model, so it would be "
            "neither trained nor saved. Put it into the model (model.x = ... in build_model) and return that",
        )
    found = [names[id(part)] for part in head]
    if "" in found:
        raise InputError("E-HEAD", f"{where}.head() returned the whole model; return the parts that are new")
    for number, name in enumerate(found):
        around = [other for place, other in enumerate(found) if place != number and f"{name}.".startswith(f"{other}.")]
        if around:
            raise InputError("E-HEAD", f"{where}.head() names {name} twice: by itself and in {around[0]}. Return one")
    return list(head)


def refuse_new_and_frozen(fresh: set[str], model: nn.Module) -> None:
    """Raise ``E-FRESH-FROZEN`` if a parameter of these names is frozen in the adapted model."""
    if stuck := fresh - trainable(model).keys():
        raise InputError(
            "E-FRESH-FROZEN",
            f"{', '.join(sorted(stuck))}: newly initialised (the pretrained weights have no such tensor) and "
            "frozen, so they would stay random. Have the task's head() return the modules that hold them",
        )


def refuse_parameters_outside(task: LightningModule, model: nn.Module) -> None:
    """Raise if the task has a trainable parameter outside its model; those in metrics are allowed.

    Raises:
        InputError: it has one (``E-OUTSIDE``).
    """
    known = {id(parameter) for parameter in model.parameters()}
    known |= {id(p) for part in task.modules() if isinstance(part, Metric) for p in part.parameters()}
    outside = [name for name, p in task.named_parameters() if p.requires_grad and id(p) not in known]
    if outside:
        more = f" and {len(outside) - 5} more" if len(outside) > 5 else ""
        raise InputError(
            "E-OUTSIDE",
            f"{type(task).__name__} has parameters beside its model, which would be neither trained nor saved: "
            f"{', '.join(outside[:5])}{more}. Put them into a module of the model (model.x = ... in build_model) and "
            "return that from head(); if they are not to learn, requires_grad_(False)",
        )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."
