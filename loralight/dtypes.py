"""The number formats that a merged model is written in, and computing in one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.errors import InputError, did_you_mean

TOLERANCES = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""How far the outputs of a model in such numbers may be from those in float32, relative to their norm."""

_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}


def find_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        InputError: models are not written in it (``E-DTYPE``).
    """
    if name not in _NAMES:
        raise InputError("E-DTYPE", f"dtype={name}: choose {', '.join(_NAMES)}.{did_you_mean(name, _NAMES)}")
    return _NAMES[name]


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model to a dtype in place, as loading its weights in that dtype does.

    What a transformers model computes when it is built and never saves, such as rotary frequencies, keeps its dtype.
    """
    kept: dict[str, Tensor] = {}
    if isinstance(model, PreTrainedModel):
        saved = model.state_dict().keys()
        kept = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in saved}
    model.to(dtype)
    for name, buffer in kept.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hand a model of that dtype its inputs in it, and pass on its outputs in float32: a task need not know of it."""
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
