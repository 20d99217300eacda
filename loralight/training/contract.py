"""What a task says of itself: the part of the base class that plugins write."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from loralight.data.inputs import read_inputs
from loralight.errors import InputError
from loralight.models.pretrained import Processor, save_model
from loralight.training.step import Step


class Contract(ABC):
    """The methods that a task writes, and those that it may; `loralight.AdapterTask` calls them."""

    peft_task_type: ClassVar[str | None] = None
    """PEFT's name for this kind of task (``SEQ_CLS``, ...), by which it picks its wrapper class."""

    updates_per_batch: int = 1
    """Optimizer steps with each training batch: a step may draw a rollout at the first and keep it for the others."""

    update: int = 0
    """Which of these `step` computes, from 0."""

    model: nn.Module
    """The model, once it is built and adapted."""

    _fresh: set[str]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The pretrained model with its weights and its (new) head."""

    @abstractmethod
    def step(self, batch: Any) -> Step:
        """The loss of one batch, and what the metrics compare."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """The metrics of validation and test, by the names under which they are logged (``validation/...``)."""

    @abstractmethod
    def predict_batch(self, inputs: Sequence[Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        """A plain dictionary for each input: what ``loralight predict`` writes as a line of JSON.

        A task's parameters with a default are what ``loralight predict`` takes as ``options.<name>=``.
        """

    def stream(self, given: Any, *args: Any, **options: Any) -> Iterator[str]:
        """The answer to one input, piece by piece as it is made; for tasks that write text.

        The options are those of `predict_batch`.
        """
        raise InputError("E-STREAM", f"{type(self).__name__} does not write text; leave out stream=true")

    @classmethod
    def read_inputs(cls, source: str) -> list[Any]:
        """The inputs that ``loralight predict input=...`` names, by default as `loralight.data.inputs` reads them."""
        return read_inputs(source)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model into ``folder`` so that its library loads it, once the adapter is merged.

        By default a transformers model is written with its `processors`, any other with its weights alone
        (``model.safetensors``).
        """
        save_model(self.model, folder, beside=self.processors())

    def processors(self) -> list[Processor]:
        """Tokenizers and processors of transformers that prepare the inputs: by default the task's attributes."""
        return [value for value in vars(self).values() if isinstance(value, Processor)]

    def head(self, model: nn.Module) -> list[nn.Module]:
        """The parts of the model that are trained in full because they are new; none by default."""
        return []

    def probed(self, features: Tensor, batch: Any) -> tuple[Tensor, Tensor] | None:
        """What a linear probe in place of the head is fitted to, or None where there is nothing of the kind.

        By default the batch's ``labels``, if they are classes or 0 and 1 for each label.

        Args:
            features: what the head's linear layer read of a batch, (items, ..., width).
            batch: as `step` takes it.

        Returns:
            Features (items, width); class numbers (items,), or 0.0 and 1.0 (items, labels).
        """
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        return (features, labels) if isinstance(labels, Tensor) else None

    def found_arguments(self) -> dict[str, Any]:
        """Arguments that the built task chose for itself, in plain values: who loads the adapter is given these."""
        return {}

    def settle(self, validated: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Numbers that validation rows decide once the weights are final, such as thresholds; none by default.

        Args:
            validated: takes a pass over the validation rows for their predictions and targets, as `step` gives them.

        Returns:
            Arguments of the task, in numbers and lists of numbers; each becomes the attribute of its name, and goes
            with the adapter.
        """
        return {}

    def tiny_batch(self) -> Any:
        """A batch of a few short rows of anything, as `step` takes it; None, as here, if there is none.

        By its gradients it is known before training which layers the loss never reads: presets leave these out.
        """
        return None

    def fresh(self, model: nn.Module) -> set[str]:
        """Names of the parameters that were initialised anew because the pretrained weights have no such tensor.

        They are found while `build_model` runs, whatever loads the weights. A task that means to keep one frozen at its
        initial value overrides this and leaves it out.
        """
        return self._fresh
