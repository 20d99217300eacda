"""The contract of every adapter method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """A method of fine-tuning: its hyperparameters, and the choice of a model's trainable parameters.

    A new method is one subclass and one ``conf/adapter/*.yaml``.

    Args:
        lr: learning rate per step that suits the method; the default of ``optimizer.lr``.
    """

    lr: float

    starts_at_base: ClassVar[bool] = True
    """Whether the adapted model computes exactly as the base does at step 0."""

    keeps_keys: ClassVar[bool] = True
    """Whether the base model's tensors keep their names in the adapted model."""

    is_probe: ClassVar[bool] = False
    """Whether only the head is trained, so that a linear head's optimum can be solved for."""

    @abstractmethod
    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        """Make the method's parameters trainable, in place.

        Args:
            model: the pretrained model, entirely frozen.
            candidates: the modules outside the head, by name in ``model``.

        Returns:
            The adapted layers' names by the target pattern that chose them.
        """

    def without(self, names: Collection[str]) -> "Adapter | None":
        """The same method that leaves these layers as they are; None, the default, if it has no such setting."""
        return None

    def check_training(self, model: nn.Module) -> None:
        """Raise if it makes no sense to train ``model`` with these settings; does nothing by default.

        A refused adapter may still be injected, loaded and merged: a sum of adapters has a rank that nobody trains.

        Args:
            model: the pretrained model.
        """
        return None

    def initialise_(self, model: nn.Module, run_batches: Callable[[int], None]) -> "Adapter":
        """Look at training data before the first step, change the model, and return an adapter that builds it so.

        By default nothing happens. It is called once in a run, in every process with the same data; a resumed run
        builds its model from the returned adapter.

        Args:
            model: the adapted model, in evaluation mode.
            run_batches: runs the model on this many training batches, without gradients; forward hooks see the inputs
                of layers.
        """
        return self

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The parameters whose learning rate is a multiple of the common one, each with its multiple."""
        return {}

    def starts(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The parameters whose training begins after step 0, each with the fraction of the run at which it begins."""
        return {}

    def undecayed(self, model: nn.Module) -> set[nn.Parameter]:
        """The matrices without weight decay; vectors have none anyway."""
        return set()

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that training adds to the mean loss of every step, or None."""
        return None

    def after_step_(self, model: nn.Module, *, step: int, num_steps: float) -> None:
        """Change ``model`` after an optimizer step, whose gradients are still there; does nothing by default.

        A method keeps its state in buffers of the trained modules: checkpoints hold these buffers.

        Args:
            model: the adapted model.
            step: optimizer steps so far, at least 1.
            num_steps: optimizer steps of the whole run; inf if it has no end.
        """
        return None

    def finish_(self, model: nn.Module) -> "Adapter":
        """Bring the trained layers into their saved form, in place, and return the adapter that builds this form.

        By default nothing changes.
        """
        return self

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        """The fields of an equivalent ``adapter_config.json`` of PEFT; None if PEFT has no such method."""
        return None

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "Adapter | None":
        """The adapter in a PEFT folder; None if it is of another method, which is the default.

        This is called for every installed method whose own class defines it.

        Args:
            config: ``adapter_config.json``, which a stranger may have written: nothing in it may be called, imported or
                used as a regular expression.
            tensors: shapes by name, without PEFT's prefix; the head's are among them.

        Raises:
            InputError: the folder is of this method, but a key asks for something that it cannot do (``E-PEFT``).
        """
        return None

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        """PEFT's names for those tensors whose names differ from the model's.

        A name is the part after ``base_model.model.``; a name without a dot is the whole name.
        """
        return {}


class Added(nn.Module):
    """A part that a method adds to a model and that cannot be merged into a weight."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name: the single definition for optimizer, checkpoint and reports."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_adapter(adapter: Any) -> None:
    """Raise ``E-ADAPTER`` unless this is an adapter, such as for its class or its name in the configs."""
    if not isinstance(adapter, Adapter):
        raise InputError("E-ADAPTER", f"adapter is {adapter!r:.80}; give one such as Lora(targets='attention')")
