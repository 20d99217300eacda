"""The number formats in which a merged model is written, and computing in one of them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.errors import InputError, did_you_mean

TOLERANCES = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""How far a model's outputs in each dtype may be from those in float32, relative to their norm."""

_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}


def find_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        InputError: models are not written in that dtype (``E-DTYPE``).
    """
    if name not in _NAMES:
        raise InputError("E-DTYPE", f"dtype={name}: choose {', '.join(_NAMES)}.{did_you_mean(name, _NAMES)}")
    return _NAMES[name]


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model to a dtype in place, as loading its weights in that dtype does.

    Buffers that a transformers model computes and never saves, such as rotary frequencies, keep their dtype.
    """
    kept = computed_buffers(model)
    model.to(dtype)
    for name, buffer in kept.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)


def computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a transformers model computes when it is built and never saves, by name."""
    if not any(isinstance(module, PreTrainedModel) for module in model.modules()):
        return {}
    saved = model.state_dict().keys()
    return {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in saved}


@contextmanager
def single_by_default() -> Iterator[None]:
    """A context in which new tensors are float32 where they would be in half precision.

    They would be while Lightning builds a model.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(before, torch.float32))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def not_narrowed(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """A context in which no cast of ``model`` narrows the tensors of these names; moves to a device still apply."""
    before = {name: tensor.data for name, tensor in tensors_of(model).items() if name in names}
    yield
    for name, tensor in tensors_of(model).items():
        old = before.get(name)
        if old is None or torch.promote_types(old.dtype, tensor.dtype) == tensor.dtype:
            continue
        owner, _, attribute = name.rpartition(".")
        if isinstance(tensor, nn.Parameter):
            tensor.data = old.to(tensor.device)
        else:
            setattr(model.get_submodule(owner), attribute, old.to(tensor.device))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, under every name they have."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def cast_inputs_(module: nn.Module) -> None:
    """Have a module cast its inputs to its own dtype, as it does under autocast anyway."""
    if _to_its_own not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_to_its_own, with_kwargs=True)


def _to_its_own(module: nn.Module, args: Any, kwargs: Any) -> Any:
    own = next((parameter.dtype for parameter in module.parameters()), None)
    return None if own is None else (_cast(args, dtype=own), _cast(kwargs, dtype=own))


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A context that casts a model's inputs to its ``dtype`` and its outputs to float32, so that a task need not."""
    to_dtype, to_float = partial(_cast, dtype=dtype), partial(_cast, dtype=torch.float32)
    hooks = [
        model.register_forward_pre_hook(lambda _, args, kwargs: (to_dtype(args), to_dtype(kwargs)), with_kwargs=True),
        model.register_forward_hook(lambda _, args, output: to_float(output)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cast(values: Any, *, dtype: torch.dtype) -> Any:
    return apply_to_collection(
        values, Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
    )
