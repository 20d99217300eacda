"""The two operations on a model: inject an adapter, and merge it into the weights."""

import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from loralight.adapters.base import Adapter, Added, check_adapter
from loralight.adapters.disabled import forget_, trained_by, trains_
from loralight.adapters.layers.torch_encoder import call_parts_, may_fuse_
from loralight.adapters.targets import passed_over
from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.budget import within_what_may_be_added


@runtime_checkable
class Mergeable(Protocol):
    """A layer that can merge its update into its weight and become the plain layer again."""

    def merge_(self) -> None: ...


def inject(
    model: nn.Module, adapter: Adapter, *, head: Sequence[nn.Module] = (), will_train: bool = True
) -> dict[str, list[str]]:
    """Freeze ``model``, let ``adapter`` add its trainable parameters, and train ``head`` in full; in place.

    Modes stay as they are: keep frozen BatchNorm in evaluation mode while you train, as ``model.train()`` would let it
    change the base's statistics. A task does so by itself.

    Args:
        model: a model whose pretrained weights are already loaded.
        adapter: the method.
        head: parts of ``model`` that are new, such as a classifier: trained in full, never adapted.
        will_train: whether settings that a training by command refuses, such as a rank above that of every layer
            (`Adapter.check_training`), are told in the log; a saved sum of several adapters has such a rank.

    Returns:
        The adapted layers' names by the target pattern that chose them. Layers that a pattern matches but whose class
        is not known are counted in the log.

    Raises:
        InputError: a target matches nothing (``E-TARGET-NONE``), there would be no trainable parameter
            (``E-NO-TRAINABLE``), the model already has an adapter (``E-ADAPTED``), or ``adapter`` is not one
            (``E-ADAPTER``).
    """
    check_adapter(adapter)
    if has := next(filter(None, map(trained_by, model.modules())), None):
        raise InputError(
            "E-ADAPTED",
            f"this {type(model).__name__} has an adapter already ({has}): merge(model) puts it into the weights first, "
            "or begin with a model anew; several adapters on one base are loralight.load_many",
        )
    if will_train:
        try:
            adapter.check_training(model)
        except InputError as error:  # it computes rightly, and small models in tests have such layers
            logger.warning("caution: %s", error)
    model.requires_grad_(False)
    in_head = {id(module) for part in head for module in part.modules()}
    candidates = {name: module for name, module in model.named_modules() if id(module) not in in_head}
    with within_what_may_be_added():
        adapted = adapter.apply_(model, candidates)
    for kind, names in passed_over(candidates, adapted).items():
        logger.info(
            "passed over: %s %s, such as %s, which may compute more than a plain layer", len(names), kind, names[0]
        )
    outside = [module for module in model.modules() if id(module) not in in_head]
    trains_([module for module in outside if _learns(module)], by=type(adapter).__name__)
    call_parts_(model)
    for part in head:
        part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("E-NO-TRAINABLE", f"{adapter} leaves no parameter of {type(model).__name__} to train")
    return adapted


def merge(model: nn.Module) -> None:
    """Merge every adapter's update into the weights, in place; the model is then plain again, with its old keys.

    Raises:
        InputError: the adapter is not a change of weights (``E-MERGE``); the model is then unchanged.
    """
    layers = mergeable(model)
    if "peft" in sys.modules:  # else no layer can be PEFT's
        from loralight.adapters.peft.layers import merge_layers_

        merge_layers_(model)
    for layer in layers.values():
        if isinstance(layer, Mergeable):  # else the module around it has already merged it
            layer.merge_()
    may_fuse_(model)
    forget_(model)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def mergeable(model: nn.Module) -> dict[str, Mergeable]:
    """The layers that `merge` merges, by name, in their order.

    Raises:
        InputError: the adapter is not a change of weights (``E-MERGE``).
    """
    if added := [name for name, module in model.named_modules() if isinstance(module, Added)]:
        kind = type(model.get_submodule(added[0])).__name__
        raise InputError(
            "E-MERGE",
            f"{added[0]} ({kind}) is an added part and no change of weights, so it cannot be merged; use the adapter "
            "beside its base model",
        )
    return {name: module for name, module in model.named_modules() if isinstance(module, Mergeable)}
