"""Selective recomputation: activations that are cheap to recompute are recomputed in the backward pass, not kept.

A matrix product with an adapter keeps its input, for the gradient of A. Often this input is the output of a norm or of
an activation function, which keeps its own input. The same operation recomputes the output from that, bit for bit, in
little time compared with a product. In blocks of transformers such outputs take a third or more of the memory.
(Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198, section 5, recompute attention.)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from loralight.acceleration.base import Acceleration
from loralight.kernels.rms_norm import is_rms_norm

_CHEAP = (nn.LayerNorm, nn.RMSNorm, nn.GELU, nn.SiLU)
_CHEAP_OF_TRANSFORMERS = "transformers.activations"  # ReLU and others that keep their output are torch's own there

# whether a gated block computes the product that its names suggest, as its first pass showed
_multiplies: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

_Note = Callable[[Callable[..., Tensor], tuple[Any, ...], Any], None]


class SelectiveRecompute(Acceleration):
    """A third less memory in transformers; see `selective_recompute`."""

    def step(self, model: nn.Module) -> AbstractContextManager[None]:
        return selective_recompute(model)


@contextmanager
def selective_recompute(model: nn.Module) -> Iterator[None]:
    """A context for ``model``'s forward pass in training that keeps less for the backward pass.

    Gradients are the same bit for bit. A compiled model chooses by itself which tensors to keep.
    """
    if model._compiled_call_impl is not None:
        yield
        return
    recipes: dict[int, _Recipe] = {}  # by the storage of their result

    def note(function: Callable[..., Tensor], inputs: tuple[Any, ...], output: Any) -> None:
        are_tensors = bool(inputs) and all(isinstance(part, Tensor) for part in (*inputs, output))
        if are_tensors and output.requires_grad:  # without a gradient the input is not kept either
            recipes[_storage(output)] = _Recipe(function, inputs, output)

    def keep(tensor: Tensor) -> Callable[[], Tensor]:
        recipe = recipes.get(_storage(tensor))
        if recipe is not None and recipe.is_of(tensor):
            return recipe.serve(tensor.shape)
        # detached: an operation that keeps its own result would keep its own graph, and all of it for good where no
        # backward pass comes (a pooler that nobody reads)
        return partial(_unchanged, tensor if tensor.is_leaf else tensor.detach(), tensor._version)

    hooks = [hook for module in model.modules() for hook in _watch(module, note)]
    try:
        with saved_tensors_hooks(keep, lambda kept: kept()):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Recipe:
    """How a tensor is recomputed from other tensors, which are kept anyway."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._function, self._inputs = function, [(part.detach(), part._version) for part in inputs]
        self._output, self._version = TensorWeakRef(output), output._version
        device = output.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self._autocast = partial(torch.autocast, device, dtype=dtype, enabled=enabled)
        self._num_served = self._num_made = 0
        self._made: Tensor | None = None

    def is_of(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is the output, perhaps in another shape, and was not written to since."""
        output = self._output()
        return (
            output is not None
            and _storage(tensor) == _storage(output)
            and (tensor.dtype, tensor.numel()) == (output.dtype, output.numel())
            and tensor.is_contiguous()  # the same count in the same storage: it begins where the output does
            and output.is_contiguous()
            and output._version == self._version
            and all(part._version == version for part, version in self._inputs)
            and all(_storage(part) != _storage(output) for part, _ in self._inputs)
        )

    def serve(self, shape: torch.Size) -> Callable[[], Tensor]:
        self._num_served += 1
        return partial(self._make, shape)

    @torch.no_grad()
    def _make(self, shape: torch.Size) -> Tensor:
        """The tensor, recomputed at the first request and held until the last of those served has it."""
        if self._made is None:
            with self._autocast():
                self._made = self._function(*(_unchanged(part, version) for part, version in self._inputs))
        made = self._made.view(shape)
        self._num_made += 1
        if self._num_made % self._num_served == 0:
            self._made = None
        return made


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage, also where no memory is behind it (device ``meta``)."""
    return int(tensor.untyped_storage()._cdata)


def _unchanged(tensor: Tensor, version: int) -> Tensor:
    """The kept tensor, checked as autograd itself would check it without hooks."""
    if tensor._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that is needed for the gradients was written to in place after "
            "it was used; find the operation (its name ends in _), or see torch.autograd.set_detect_anomaly"
        )
    return tensor


def _watch(module: Any, note: _Note) -> list[RemovableHandle]:
    """Hooks that note which results of ``module`` can be recomputed."""
    if isinstance(module, _CHEAP) or type(module).__module__ == _CHEAP_OF_TRANSFORMERS or is_rms_norm(module):
        return [module.register_forward_hook(lambda module, args, output: note(module.forward, args, output))]
    # down_proj(act_fn(gate_proj(x)) * up_proj(x)), as Llama and its kin compute it
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return _watch_product(module, note) if all(isinstance(getattr(module, n, None), nn.Module) for n in names) else []


def _watch_product(module: Any, note: _Note) -> list[RemovableHandle]:
    act_fn, up_proj = module.act_fn, module.up_proj
    parts: dict[Any, tuple[tuple[Any, ...], Tensor]] = {}  # a part's last inputs and its result

    def note_part(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        parts[part] = args, output

    def note_product(down_proj: nn.Module, args: tuple[Any, ...]) -> None:
        if parts.keys() != {act_fn, up_proj}:
            return
        (given, gated), (_, up) = parts.pop(act_fn), parts.pop(up_proj)
        if module not in _multiplies:
            _multiplies[module] = torch.equal(gated * up, *args)
        if _multiplies[module]:
            note(lambda gate, up: act_fn.forward(gate) * up, (*given, up), *args)

    return [
        act_fn.register_forward_hook(note_part),
        up_proj.register_forward_hook(note_part),
        module.down_proj.register_forward_pre_hook(note_product),
    ]
