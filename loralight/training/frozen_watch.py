"""Checks that frozen tensors do not change, by a sum over the bits of each before and after training."""

import torch
from torch import Tensor, nn

from loralight.errors import InputError
from loralight.models.shards import part

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class FrozenWatch:
    """Remembers a checksum of each frozen tensor; taking it and each check are one pass over the weights.

    Args:
        model: on the device it is trained on.
        learns: names of the tensors that may change.
    """

    def __init__(self, model: nn.Module, learns: set[str]) -> None:
        self._before = _sums(model, learns)

    def refuse_change(self, model: nn.Module, learns: set[str]) -> None:
        """Raise if a frozen tensor has changed.

        Raises:
            InputError: one has (``E-FROZEN-MOVED``).
        """
        now = _sums(model, learns)
        names = [name for name in self._before if name in now]
        if not names:
            return
        changed = torch.stack([self._before[name] != now[name] for name in names]).tolist()
        if moved := [name for name, is_changed in zip(names, changed, strict=True) if is_changed]:
            more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
            raise InputError(
                "E-FROZEN-MOVED",
                f"{', '.join(moved[:5])}{more}: frozen, but training has changed it, and no checkpoint or adapter "
                "holds that. The task's step, or a callback, writes into it: leave it alone, or have it learn",
            )


@torch.no_grad()
def _sums(model: nn.Module, learns: set[str]) -> dict[str, Tensor]:
    """A checksum of each frozen tensor in the state dict, on its device; weights tied to trainable ones have none."""
    state = {name: part(tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    moving = {tensor.data_ptr() for name, tensor in state.items() if name in learns}
    return {
        name: tensor.view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
        for name, tensor in state.items()
        if name not in learns and tensor.data_ptr() not in moving and tensor.element_size() in _WORDS
    }
