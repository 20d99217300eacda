"""The checks of a training run: each step's gradients, and at the end of an epoch the frozen tensors."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from loralight.adapters.base import Adapter
from loralight.models.shards import part, summed_norms
from loralight.training.frozen_watch import FrozenWatch
from loralight.training.gradients import GradientWatch, SeenStep, layer_of
from loralight.training.learning import Learning
from loralight.training.unread import refuse_unread


class Watch:
    """Watches the gradients and the frozen tensors of a run.

    Args:
        model: on the device it is trained on, before the first step.
        learning: its trainable part.
        optimizer: the run's optimizer.
    """

    def __init__(self, model: nn.Module, learning: Learning, optimizer: Optimizer) -> None:
        self._model, self._learning = model, learning
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        self._layers = [layer_of(name, learning.layers) for name in names]
        self._gradients = GradientWatch()
        self._begins_still = False
        self._frozen = FrozenWatch(model, set(learning.tensors()))

    def begin(self, adapter: Adapter, adapted: Mapping[str, Collection[str]]) -> None:
        """Check the first step of a run, once its gradients are computed.

        Args:
            adapter: the run's adapter.
            adapted: the adapted layers by target.

        Raises:
            InputError: a parameter has no gradient (``E-UNREACHED``).
        """
        self._gradients.begin()
        self._begins_still = bool(self._zero_modules(learn=True))
        if deaf := [name for name, p in self._learning.parameters.items() if p.grad is None]:
            layers = [name for found in adapted.values() for name in found]
            owners = {name: layer_of(name, layers) for name in deaf}
            refuse_unread(adapter, {owner if owner in layers else name for name, owner in owners.items()}, adapted)

    def look_(self, gradients: Sequence[Tensor | None], *, loss: float, place: Callable[[], str], scaled: bool) -> None:
        """Check a step; see `GradientWatch.look_`."""
        self._gradients.look_(gradients, SeenStep(loss, place, self._learning.tensors), scaled=scaled)
        self._gradients.refuse_dead_layers(self._layers, self._hint, now=False)

    def end_epoch(self) -> None:
        """Check at the end of an epoch.

        Modules that learn from 0, as the last norm of a residual block or a new head may, keep gradients from the
        layers before them until they have moved: then a short epoch tells nothing of dead layers.

        Raises:
            InputError: see `GradientWatch.refuse_dead_layers` and `FrozenWatch.refuse_change`.
        """
        self._gradients.settle()
        self._gradients.refuse_dead_layers(self._layers, self._hint, now=not self._begins_still)
        self._frozen.refuse_change(self._model, set(self._learning.tensors()))

    def _hint(self) -> str:
        """A hint for layers without a gradient: a frozen module that is all 0."""
        frozen = self._zero_modules(learn=False)
        if not frozen:
            return ""
        return (
            f". {frozen[0]} is frozen and all 0, as in models that were never trained, and lets nothing of its block "
            "through: give trained weights, or train all, with adapter=full"
        )

    def _zero_modules(self, *, learn: bool) -> list[str]:
        """Names of the model's own modules that learn, or do not, and whose parameters are all 0, such as scales."""
        owned = defaultdict(list)
        for name, parameter in self._model.named_parameters():
            if name not in self._learning.added:
                owned[name.rpartition(".")[0]].append(parameter)
        chosen = {name: own for name, own in owned.items() if any(one.requires_grad for one in own) == learn}
        every = [parameter for own in chosen.values() for parameter in own]
        if not every:
            return []
        found = summed_norms(torch.stack([_has_values(one).float() for one in every]), every).tolist()
        has_values = dict(zip(map(id, every), found, strict=True))
        return [name for name, own in chosen.items() if not any(has_values[id(one)] for one in own)]


def _has_values(parameter: Tensor) -> Tensor:
    """Whether this process's part of a parameter is not 0 throughout; a quantised one is not."""
    is_plain = type(parameter) in (nn.Parameter, DTensor) and parameter.is_floating_point()
    return part(parameter.detach()).any() if is_plain else torch.ones((), dtype=torch.bool, device=parameter.device)
