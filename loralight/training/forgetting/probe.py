"""The contract of a probe of forgetting: it measures one thing that the base model could do before training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from loralight.errors import InputError
from loralight.training.task import AdapterTask


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a probe has found.

    Args:
        scores: by name, such as ``loss``.
        outputs: the numbers from which the scores were made, such as the loss of each token, on any device. They tell
            whether two models compute the same, bit for bit.
    """

    scores: Mapping[str, float]
    outputs: Tensor


class ForgettingProbe(ABC):
    """Measures something that a base model can do, on the same rows before and after training.

    A new probe is a subclass and a file of YAML in the group ``forgetting``. Its constructor takes the file's settings
    by keyword, refuses wrong ones, and does nothing that takes long.
    """

    def prepare(self, task: AdapterTask) -> None:
        """Read and load what `measure` needs. Called once, before the model has learned, in the state of `measure`.

        Raises:
            InputError: this model has not what is to be measured (``E-FORGETTING``).
        """
        return None

    @abstractmethod
    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        """Measure the model as it is now, without changing it.

        It is on its device, in evaluation mode, without gradients, and without accelerations: each token and layer is
        computed.

        Args:
            task: its model has the adapter on, or off.
            base: the outputs of the base model; None when it is the base model that is measured.
        """


def check_count(name: str, count: int, *, least: int = 1) -> None:
    """Raise ``E-FORGETTING`` if a probe's setting is less than ``least``."""
    if count < least:
        raise InputError("E-FORGETTING", f"forgetting.{name}={count}: give {least} or more")
