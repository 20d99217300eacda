"""BatchNorm layers whose scale goes into the convolution before them: for good, or in each step of training."""

import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from loralight.adapters.disabled import Switchable
from loralight.adapters.layers.lora import LoraLayer
from loralight.errors import InputError
from loralight.kernels.batch_norm import Follower, Place
from loralight.kernels.freezing import frozen_kinds

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Kinds:
    """What tracing must know; exact classes, as a subclass may compute something else.

    Args:
        convolutions, norms: classes that a pair may be of.
        whole: modules that are not traced inside.
        functions: functions that are not traced inside.
    """

    convolutions: Collection[type[nn.Module]]
    norms: Collection[type[nn.Module]]
    whole: Collection[type[nn.Module]] = ()
    functions: Collection[Any] = ()


def _kinds() -> _Kinds:
    norms = (*frozen_kinds(), *frozen_kinds().values())
    if "timm.models" not in sys.modules:  # it takes seconds to import, and then no layer is timm's
        return _Kinds(_CONVOLUTIONS, norms)
    from timm.layers.conv2d_same import Conv2dSame
    from timm.models import get_notrace_functions, get_notrace_modules

    whole, functions = get_notrace_modules(), get_notrace_functions()  # type: ignore[no-untyped-call]
    return _Kinds((*_CONVOLUTIONS, Conv2dSame), norms, whole, functions)


def refuse_without_batch_norm(model: nn.Module) -> None:
    """Raise ``E-FOLD`` if a model has no BatchNorm."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise InputError("E-FOLD", f"{type(model).__name__} has no BatchNorm; leave fold_batch_norm=false")


def fold_batch_norm_(model: nn.Module) -> int:
    """Fold each BatchNorm that alone reads a convolution's output into that convolution, in place; returns how many.

    The BatchNorm layer stays, so that the model keeps its architecture and its keys. It only adds its remaining bias:
    its weight is 1, its mean 0, its variance ``1 - eps``.

    Raises:
        InputError: no BatchNorm follows a convolution, or torch.fx cannot trace the model (``E-FOLD``).
    """
    pairs = list(_pairs(model))
    if not pairs:
        raise InputError("E-FOLD", "no BatchNorm follows a convolution in this model; leave fold_batch_norm=false")
    for convolution, norm in pairs:
        _fold_(model.get_submodule(convolution), model.get_submodule(norm))
    return len(pairs)


def link_(model: nn.Module) -> None:
    """Link each convolution to its BatchNorm, where tracing shows that nothing else reads the convolution's output.

    In training, a frozen BatchNorm is then part of the adapted convolution, see `loralight.kernels.batch_norm`. A
    second call starts anew.
    """
    unlink_(model)
    adapted = {type(module) for module in model.modules() if _follows_norm(module)}
    if not adapted:
        return
    try:
        pairs = list(_pairs(model, adapted))
    except InputError:  # then each layer computes by itself, with the same result
        return
    for convolution, norm in (tuple(_place(model, name) for name in pair) for pair in pairs):
        vars(norm.module)["source"] = convolution
        if _follows_norm(convolution.module):
            vars(convolution.module)["follower"] = Follower(convolution=convolution, norm=norm)


def _place(model: nn.Module, name: str) -> Place:
    parent, _, own = name.rpartition(".")
    return Place(parent=model.get_submodule(parent), name=own, module=model.get_submodule(name))


def unlink_(model: nn.Module) -> None:
    """Undo `link_`."""
    for module in model.modules():
        if _follows_norm(module) or isinstance(module, nn.modules.batchnorm._BatchNorm):
            vars(module).pop("follower" if _follows_norm(module) else "source", None)


def _follows_norm(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and module.follows_norm


class _Tracer(fx.Tracer):
    """Does not trace the inside of folded layers, of modules that timm marks as untraceable, or of our own layers.

    Our layers look at their input before they compute.
    """

    def __init__(self, kinds: _Kinds) -> None:
        super().__init__(autowrap_functions=tuple(kinds.functions))
        self._whole = {*kinds.convolutions, *kinds.norms, *kinds.whole}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            type(m) in self._whole
            or isinstance(m, Switchable | nn.Dropout)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _pairs(model: nn.Module, adapted: Collection[type[nn.Module]] = ()) -> Iterator[tuple[str, str]]:
    """The names of each convolution, also of ``adapted`` classes, and of the BatchNorm that alone reads its output."""
    kinds = _kinds()
    convolutions = {*kinds.convolutions, *adapted}
    try:
        graph = _Tracer(kinds).trace(model)
    except Exception as error:  # a model's own code may raise anything when it is given no real tensor
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            "E-FOLD", f"torch.fx cannot trace {type(model).__name__}: {reason}; leave fold_batch_norm=false"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(model.get_submodule(str(node.target))) for node in calls)
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = (model.get_submodule(str(one.target)) for one in (before, node))
        if type(convolution) not in convolutions or type(norm) not in kinds.norms or times[id(convolution)] > 1:
            continue
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if times[id(norm)] == 1 and norm.affine and norm.running_mean is not None:
            yield str(before.target), str(node.target)


@torch.no_grad()
def _fold_(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.modules.conv._ConvNd) and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    tensors = (convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, scale, shift = (None if one is None else one.cpu().double() for one in tensors)
    assert weight is not None and mean is not None and variance is not None
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    convolution.weight.copy_(weight)
    if convolution.bias is not None:
        convolution.bias.zero_()
    norm.weight.fill_(1)
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
