"""What every adapter method promises, and the two verbs on a model: inject and merge."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from loralight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """A way to fine-tune: its hyperparameters, and which parameters of a model it makes learn.

    A new method is one subclass and one ``conf/adapter/*.yaml``.

    Args:
        lr: learning rate per step that suits the method; ``optimizer.lr`` takes it unless told otherwise.
    """

    lr: float

    @abstractmethod
    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        """Make the method's parameters learn, in place.

        Args:
            model: the pretrained model, entirely frozen.
            candidates: the modules outside the head, by their names in ``model``.

        Returns:
            The adapted layers' names by the target pattern that chose them.
        """

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The parameters whose learning rate is a multiple of the others', with that multiple."""
        return {}

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        """The fields of PEFT's ``adapter_config.json`` that say the same, or None where PEFT has no such method."""
        return None

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        """PEFT's names for those tensors that it calls otherwise than the model does."""
        return {}


@runtime_checkable
class Mergeable(Protocol):
    """A layer that can put its update into its weight and be the plain layer again."""

    def merge_(self) -> None: ...


def inject(model: nn.Module, adapter: Adapter, *, head: Sequence[nn.Module] = ()) -> dict[str, list[str]]:
    """Freeze ``model``, let ``adapter`` add what learns, and let ``head`` learn as a whole; in place.

    Args:
        model: a model whose pretrained weights are already loaded.
        adapter: the method.
        head: parts of ``model`` that are new (a classifier, say): trained in full, never adapted.

    Returns:
        The adapted layers' names by the target pattern that chose them.

    Raises:
        InputError: a target matches nothing (``E-TARGET-NONE``), or nothing would learn (``E-NO-TRAINABLE``).
    """
    model.requires_grad_(False)
    in_head = {id(module) for part in head for module in part.modules()}
    candidates = {name: module for name, module in model.named_modules() if id(module) not in in_head}
    adapted = adapter.apply_(model, candidates)
    for part in head:
        part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("E-NO-TRAINABLE", f"{adapter} leaves no parameter of {type(model).__name__} to train")
    return adapted


def merge(model: nn.Module) -> None:
    """Put every adapter's update into the weights it adapts, in place: a plain model again, with its old keys."""
    for module in list(model.modules()):
        if isinstance(module, Mergeable):
            module.merge_()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name: the one definition for optimizer, checkpoint and reports."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
