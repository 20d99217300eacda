"""The checks of a training run: each step's gradients, and at the end of an epoch the frozen tensors."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from loralight.adapters.base import Adapter
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
        if deaf := [name for name, p in self._learning.parameters.items() if p.grad is None]:
            layers = [name for found in adapted.values() for name in found]
            owners = {name: layer_of(name, layers) for name in deaf}
            refuse_unread(adapter, {owner if owner in layers else name for name, owner in owners.items()}, adapted)

    def look_(self, gradients: Sequence[Tensor | None], *, loss: float, place: Callable[[], str], scaled: bool) -> None:
        """Check a step; see `GradientWatch.look_`."""
        self._gradients.look_(gradients, SeenStep(loss, place, self._learning.tensors), scaled=scaled)
        self._gradients.refuse_dead_layers(self._layers, now=False)

    def end_epoch(self) -> None:
        """Check at the end of an epoch.

        Raises:
            InputError: see `GradientWatch.refuse_dead_layers` and `FrozenWatch.refuse_change`.
        """
        self._gradients.settle()
        self._gradients.refuse_dead_layers(self._layers, now=True)
        self._frozen.refuse_change(self._model, set(self._learning.tensors()))
