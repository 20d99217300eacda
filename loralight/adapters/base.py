"""The contract of every adapter method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """A way to fine-tune: its hyperparameters, and which parameters of a model it makes learn.

    A new method is one subclass and one ``conf/adapter/*.yaml``.

    Args:
        lr: learning rate per step that suits the method; ``optimizer.lr`` takes it unless told otherwise.
    """

    lr: float

    starts_at_base: ClassVar[bool] = True
    """Whether the adapted model computes exactly as the base does at step 0."""

    keeps_keys: ClassVar[bool] = True
    """Whether the base model's tensors have the names in the adapted model that they had before."""

    is_probe: ClassVar[bool] = False
    """Whether the head alone learns, so that a linear head's best numbers can be solved for."""

    @abstractmethod
    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        """Make the method's parameters learn, in place.

        Args:
            model: the pretrained model, entirely frozen.
            candidates: the modules outside the head, by their names in ``model``.

        Returns:
            The adapted layers' names by the target pattern that chose them.
        """

    def without(self, names: Collection[str]) -> "Adapter | None":
        """The same method that leaves these layers as they are; None, as here, if it has no such setting."""
        return None

    def check_training(self, model: nn.Module) -> None:
        """Raise if to train ``model`` with these settings makes no sense; nothing by default.

        A refused adapter may still be injected, loaded and merged: a sum of adapters has a rank that nobody trains.

        Args:
            model: the pretrained model.
        """
        return None

    def initialise_(self, model: nn.Module, run_batches: Callable[[int], None]) -> "Adapter":
        """Look at training data before the first step, change the model by it, and return the adapter that builds that.

        By default nothing happens. It is called once in a run, in every process with the same data; a resumed run
        builds its model from what was returned.

        Args:
            model: the adapted model, in evaluation mode.
            run_batches: has the model compute the outputs of so many training batches, without gradients: forward hooks
                see what layers are given.
        """
        return self

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The parameters whose learning rate is a multiple of the others', with that multiple."""
        return {}

    def starts(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The parameters that begin to learn later than at step 0, with the fraction of the run at which they do."""
        return {}

    def undecayed(self, model: nn.Module) -> set[nn.Parameter]:
        """The matrices without weight decay; vectors have none anyway."""
        return set()

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that training adds to the mean loss of every step, or None."""
        return None

    def after_step_(self, model: nn.Module, *, step: int, num_steps: float) -> None:
        """Change ``model`` after an optimizer step, whose gradients are still there; nothing by default.

        A method keeps its state in buffers of the modules that learn: checkpoints hold these buffers.

        Args:
            model: the adapted model.
            step: optimizer steps so far, at least 1.
            num_steps: those of the whole run; inf if it has no end.
        """
        return None

    def finish_(self, model: nn.Module) -> "Adapter":
        """Bring the trained layers into the form that is saved, in place, and return the adapter that builds it.

        By default nothing changes.
        """
        return self

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        """The fields of PEFT's ``adapter_config.json`` that say the same, or None where PEFT has no such method."""
        return None

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "Adapter | None":
        """The adapter that a folder of PEFT's describes; None, as here, if it is not of this method.

        Asked of every installed method whose own class defines it.

        Args:
            config: ``adapter_config.json``, data of a stranger's: nothing in it is to be called or imported, or taken
                as a regular expression.
            tensors: shapes by name, without PEFT's prefix; the head's are among them.

        Raises:
            InputError: it is of this method, which cannot do what a key says (``E-PEFT``).
        """
        return None

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        """PEFT's names for those tensors that it calls otherwise than the model does.

        They stand for what follows ``base_model.model.``, but a name without a dot is a whole one.
        """
        return {}


class Added(nn.Module):
    """A part that a method adds to a model and that no weight can take up: such a model is never merged."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name: the one definition for optimizer, checkpoint and reports."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
