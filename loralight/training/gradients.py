"""Checks of gradients: steps with a non-finite gradient, and layers that no gradient reaches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.shards import part, summed_norms
from loralight.training.step import on_its_way

MOST_IN_A_ROW = 3
"""Most non-finite steps in a row: a single bad batch does not end a run, but divergence does."""

LOOKED_AT = 100
"""Steps after which a layer counts as dead if no gradient has reached it."""


class SeenStep(NamedTuple):
    """A step whose gradients are checked.

    Args:
        loss: mean loss of the step.
        place: describes where in the run the step is.
        learning: returns the tensors that a checkpoint holds.
    """

    loss: float
    place: Callable[[], str]
    learning: Callable[[], Mapping[str, Tensor]]

    @property
    def loss_is_finite(self) -> bool:
        return math.isfinite(self.loss)

    def told(self) -> str:
        """The non-finite value, and its place."""
        what = f"a gradient is not finite (the loss is {self.loss:.4g})" if self.loss_is_finite else None
        return f"{what or f'the loss is {self.loss}'} at {self.place()}"


class GradientWatch:
    """Keeps non-finite gradients from the weights, and remembers the largest gradient of each parameter.

    It checks the gradient that is about to be applied, so every rank finds the same. On a GPU nothing waits for the
    check: a non-finite gradient is set to 0 there, and reported at the next step.
    """

    def __init__(self) -> None:
        self._largest: Tensor | None = None  # norms over the finite steps so far; the last element counts those steps
        self._num_steps = LOOKED_AT
        self._unsettled: Callable[[], None] | None = None
        self._in_a_row: list[SeenStep] = []

    def begin(self) -> None:
        """Start to remember gradients, at the first step of a run: later steps may have nothing left to learn."""
        self._num_steps, self._largest = 0, None

    def look_(self, gradients: Sequence[Tensor | None], step: "SeenStep", *, scaled: bool) -> None:
        """Set all ``gradients`` to 0 if the step's loss or one of the gradients is not finite.

        Args:
            gradients: of the trainable parameters, always in the same order; not all None.
            step: the step that they belong to.
            scaled: whether a `torch.amp.GradScaler` skips such steps, as it does while it looks for its scale.

        Raises:
            InputError: more than `MOST_IN_A_ROW` steps in a row were not finite, or a trainable tensor is no longer
                finite (``E-NONFINITE``).
        """
        self.settle()
        parts = [None if gradient is None else part(gradient) for gradient in gradients]
        present = [gradient for gradient in parts if gradient is not None]
        norms = summed_norms(_norms(parts, present[0].new_zeros(())), gradients)
        is_bad = ~norms.isfinite().all() | (not step.loss_is_finite)
        self._remember(norms.where(~is_bad, 0), ~is_bad)
        at_once = is_bad.device.type == "cpu" or not step.loss_is_finite
        if not at_once or is_bad:  # reading `is_bad` from a GPU would wait for all that is queued there
            for gradient in present:
                gradient.masked_fill_(is_bad, 0)
        if scaled and step.loss_is_finite:
            return
        read = on_its_way(is_bad[None])
        self._unsettled = lambda: self._tell(step) if read()[0] else self._in_a_row.clear()
        if at_once:
            self.settle()

    def settle(self) -> None:
        """Report the last step, if that has not been done yet; raises like `look_`."""
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is not None:
            unsettled()

    def _tell(self, step: "SeenStep") -> None:
        self._in_a_row.append(step)
        if spoilt := [name for name, tensor in step.learning().items() if not part(tensor).isfinite().all()]:
            more = f" and {len(spoilt) - 5} more" if len(spoilt) > 5 else ""
            raise InputError(
                "E-NONFINITE",
                f"{step.told()}, and {', '.join(spoilt[:5])}{more} is not finite any more; the checkpoints from before "
                "are as they were. Look at these rows, or lower optimizer.lr",
            )
        if len(self._in_a_row) > MOST_IN_A_ROW:
            raise InputError(
                "E-NONFINITE",
                f"{step.told()}, after {MOST_IN_A_ROW} steps in a row that were no better. None of them was applied: "
                "the weights are finite, and so are the checkpoints. Lower optimizer.lr, or look at these rows",
            )
        logger.warning("E-NONFINITE: %s; this step's gradient is taken as 0", step.told())

    def _remember(self, norms: Tensor, counts: Tensor) -> None:
        """Keep the largest norms over the first `LOOKED_AT` steps; then each layer is known to be reached or dead."""
        if self._num_steps >= LOOKED_AT:
            return
        self._num_steps += 1
        before = norms.new_zeros(len(norms) + 1) if self._largest is None else self._largest
        self._largest = torch.cat([torch.maximum(before[:-1], norms), before[-1:] + counts])

    def refuse_dead_layers(self, layers: Sequence[str], hint: Callable[[], str] = str, *, now: bool) -> None:
        """Raise if no gradient has reached some layer; checks once, after enough steps.

        A layer is alive if any of its parameters is: parts of it may get no gradient yet, such as factors behind one
        that starts at 0.

        Args:
            layers: the layer of each parameter, in the order of the gradients.
            hint: gives a further sentence for the message, or an empty text.
            now: whether to check without further steps, as at the end of an epoch.

        Raises:
            InputError: a layer's gradient was 0 in every step (``E-UNREACHED``), or no step had a finite gradient
                (``E-NONFINITE``).
        """
        enough = self._num_steps == LOOKED_AT
        if self._largest is None or not (now or enough):
            return
        *largest, num_finite = self._largest.tolist()
        if not num_finite and not enough:
            return  # the scaler is still looking for its scale
        self._largest, self._num_steps = None, LOOKED_AT
        if not num_finite:
            raise InputError(
                "E-NONFINITE",
                f"no gradient of the first {LOOKED_AT} steps was finite, so nothing was learned. Take "
                "trainer.precision=bf16-mixed or 32-true, or lower optimizer.lr",
            )
        alive = {layer for layer, norm in zip(layers, largest, strict=True) if norm}
        if dead := [layer for layer in dict.fromkeys(layers) if layer not in alive]:
            more = f" and {len(dead) - 5} more" if len(dead) > 5 else ""
            raise InputError(
                "E-UNREACHED",
                f"the gradient of {', '.join(dead[:5])}{more} was 0 in each of the first {num_finite:.0f} steps: what "
                "it computes does not count, or its inputs are all 0. Leave it out, with adapter.exclude say, or mend "
                f"the task's step{hint()}",
            )


def _norms(gradients: Sequence[Tensor | None], zero: Tensor) -> Tensor:
    """The 2-norm of each gradient, in order. It is infinite also where a square is, since optimizers take squares."""
    by_dtype: dict[torch.dtype, dict[int, Tensor]] = {}
    for number, gradient in enumerate(gradients):
        if gradient is not None:
            by_dtype.setdefault(gradient.dtype, {})[number] = gradient
    norms = [zero] * len(gradients)
    for group in by_dtype.values():
        for number, norm in zip(group, torch._foreach_norm(list(group.values())), strict=True):
            norms[number] = norm
    return torch.stack(norms)


def layer_of(name: str, layers: Sequence[str]) -> str:
    """The longest of ``layers`` that is a prefix of a parameter's name, else the module that holds the parameter."""
    around = [layer for layer in layers if name.startswith(f"{layer}.")]
    return max(around, key=len, default=name.rpartition(".")[0] or name)
