"""Checks that frozen tensors stay: a sum over the bits of each, before training and after."""

import torch
from torch import Tensor, nn

from loralight.errors import InputError

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class FrozenWatch:
    """Knows the frozen tensors of a model as they were: one pass over the weights, here and at each look.

    Args:
        model: on the device that trains.
        learns: names of the tensors that may change.
    """

    def __init__(self, model: nn.Module, learns: set[str]) -> None:
        self._before = _sums(model, learns)

    def refuse_change(self, model: nn.Module, learns: set[str]) -> None:
        """Raise if a frozen tensor is another.

        Raises:
            InputError: it is (``E-FROZEN-MOVED``).
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
    """A number for each frozen tensor that a state dict holds, on its device; a tied weight that learns is none."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    moving = {tensor.data_ptr() for name, tensor in state.items() if name in learns}
    return {
        name: tensor.view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
        for name, tensor in state.items()
        if name not in learns and tensor.data_ptr() not in moving and tensor.element_size() in _WORDS
    }
