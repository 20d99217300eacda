"""Adapted models that share one base's frozen tensors, so that many adapters need one base and no switching."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from loralight.errors import InputError


def share_(model: nn.Module, base: nn.Module, *, learns: Collection[str] = (), origin: str = "the model") -> None:
    """Replace the frozen tensors of ``model`` by those of ``base``, in place; a tensor that ``base`` lacks stays.

    Every value is compared, except of tensors that are already shared.

    Args:
        model: an adapted model, on any device.
        base: the plain model.
        learns: tensors that stay the model's own, besides its trainable parameters, such as a BatchNorm's statistics.
        origin: where the model comes from, for the message.

    Raises:
        InputError: a frozen tensor has another value than in ``base``, or ``base`` has none of them (``E-BASE``).
    """
    twins = dict(base.named_modules(remove_duplicate=False))
    state = model.state_dict(keep_vars=True)  # all names of a tied weight; `trainable` has one
    saved = {name for name, tensor in state.items() if isinstance(tensor, Tensor) and not tensor.requires_grad}
    saved -= set(learns)
    shared: set[str] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        if (twin := twins.get(prefix)) is None:
            continue
        for ours, theirs in ((module._parameters, twin._parameters), (module._buffers, twin._buffers)):
            for key in ours.keys() & theirs.keys():
                name = f"{prefix}.{key}" if prefix else key
                if name in learns or (ours[key] is not None and ours[key].requires_grad):
                    continue
                if _same(ours[key], theirs[key]):
                    ours[key] = theirs[key]
                    shared.add(name)
                elif name in saved:
                    raise InputError(
                        "E-BASE",
                        f"{origin}: {name} has other values than in the base model of the adapters before it; adapters "
                        "that are loaded together need the same base",
                    )
    if saved and not saved & shared:
        raise InputError("E-BASE", f"{origin} has no tensor in common with the base model of the adapters before it")


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None or ours is theirs:
        return ours is theirs
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs.to(ours.device))  # shapes are compared too
