"""The interface of a task: the part of the base class that plugins write."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from loralight.data.inputs import read_inputs
from loralight.errors import InputError
from loralight.models.blocks import blocks_in_every_step
from loralight.models.pretrained import Processor, save_model
from loralight.training.answers import Answers
from loralight.training.step import Step


class Contract(ABC):
    """The methods that a task must write or may override; `loralight.AdapterTask` calls them."""

    peft_task_type: ClassVar[str | None] = None
    """PEFT's name for this kind of task (``SEQ_CLS``, ...); PEFT chooses its wrapper class by it."""

    updates_per_batch: int = 1
    """Optimizer steps with each training batch: `step` may draw a rollout at the first and keep it for the others."""

    update: int = 0
    """The number of the optimizer step, within its batch, that `step` computes; from 0."""

    model: nn.Module
    """The model, once it is built and adapted."""

    _fresh: set[str]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The pretrained model with its weights and its (new) head."""

    @abstractmethod
    def step(self, batch: Any) -> Step:
        """The loss of one batch, and the predictions and targets that the metrics compare."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """The metrics of validation and test, by the names under which they are logged (``validation/...``)."""

    @abstractmethod
    def predict_batch(self, inputs: Sequence[Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        """A plain dictionary for each input, which ``loralight predict`` writes as a line of JSON.

        ``loralight predict`` takes this method's parameters with a default as ``options.<name>=``.
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
        """Write the model, into which the adapter has been merged, so that its own library can load it.

        By default a transformers model is written with its `processors`, and any other model as its weights alone
        (``model.safetensors``).
        """
        save_model(self.model, folder, beside=self.processors())

    def processors(self) -> list[Processor]:
        """Tokenizers and processors of transformers that prepare the inputs; by default those among the attributes."""
        return [value for value in vars(self).values() if isinstance(value, Processor)]

    def head(self, model: nn.Module) -> list[nn.Module]:
        """The parts of the model that are trained in full because they are new; none by default."""
        return []

    def probed(self, features: Tensor, batch: Any) -> tuple[Tensor, Tensor] | None:
        """The features and targets to which a linear probe in place of the head is fitted; None if there are none.

        By default the targets are the batch's ``labels``.

        Args:
            features: inputs of the head's linear layer for a batch, (items, ..., width).
            batch: as `step` takes it.

        Returns:
            Features (items, width); class numbers (items,), or 0.0 and 1.0 (items, labels).
        """
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        return (features, labels) if isinstance(labels, Tensor) else None

    def found_arguments(self) -> dict[str, Any]:
        """Arguments that the built task chose for itself, as plain values; loading the adapter uses them."""
        return {}

    def settle(self, validated: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Numbers that are chosen on validation rows once the weights are final, such as thresholds; none by default.

        Args:
            validated: runs over the validation rows and returns their predictions and targets, as `step` gives them.

        Returns:
            Arguments of the task, as numbers and lists of numbers. Each becomes the attribute of that name, and is
            saved with the adapter.
        """
        return {}

    def answers(self, batch: Any, predictions: Tensor, targets: Tensor) -> Answers | None:
        """The answers to a batch's rows, in their order, which a run keeps for ``loralight compare``.

        By default, None: a run then keeps a number or a class for each row, if `step` gives these.

        For labels it is one line: ``return answers_of_labels(predictions, targets, self.labels)``. Inputs are shown as
        `TaskData.shown` gives them.

        Args:
            batch: of validation or test, as `step` takes it.
            predictions: as `step` gives them.
            targets: likewise.

        A task whose `step` gives further ``arguments``, such as texts that it wrote for its metrics, may declare some
        of them by name, with a default.
        """
        return None

    def gathered_apart(self, model: nn.Module) -> Sequence[nn.Module]:
        """The parts of the model whose weights are gathered one part at a time, where processes share them out.

        By default these are the model's blocks (``trainer=fsdp``). A part is called as a module, by every process in
        every step: experts that the rows choose are no such parts.
        """
        return blocks_in_every_step(model)

    def tiny_batch(self) -> Any:
        """A batch of a few short, arbitrary rows, as `step` takes it; None by default.

        Its gradients show before training which layers the loss never reads; presets leave these layers out.
        """
        return None

    def constant_answer(self) -> Tensor | None:
        """The logits of the best answer that is the same for all rows, (outputs,); None by default.

        The bias of a new output layer starts there. With many rare labels, the first steps from an answer of one half
        for each all push the same way, to answer no, and a run can end at chance (docs/recipes.md).
        """
        return None

    def fresh(self, model: nn.Module) -> set[str]:
        """Names of the parameters that were initialised anew because the pretrained weights have no such tensor.

        They are found while `build_model` runs, whatever loads the weights. A task that keeps such a parameter frozen
        at its initial value overrides this method and leaves its name out.
        """
        return self._fresh
