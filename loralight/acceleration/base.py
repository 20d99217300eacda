"""The contract of every acceleration: the same results in less time or memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import nn

if TYPE_CHECKING:
    from loralight.data import TaskData  # which brings the library of data sets


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts from which an acceleration tells whether it applies.

    Args:
        model: built and adapted.
        still: the modules that training leaves in evaluation mode.
        fixed: BatchNorm layers whose parameters and statistics never change; they are among ``still``.
        data: of the run that begins, if it is loralight's own.
        folder: of the run that begins.
    """

    model: nn.Module
    still: Sequence[nn.Module] = ()
    fixed: Sequence[nn.Module] = ()
    data: "TaskData | None" = None
    folder: Path | None = None


class Acceleration:
    """The same results in less time or memory, for one model; a task knows no acceleration by name.

    A new acceleration is a subclass and a line of YAML in the group ``acceleration``. It changes the model in place,
    and ``detach_`` undoes every change.
    """

    excludes: ClassVar[frozenset[str]] = frozenset()
    """Config names of the accelerations that are left out where this one is on: they would do the same work."""

    needs_whole_weights: ClassVar[bool] = True
    """Whether it keeps, packs or skips weights, or reads them outside of a block's passes. Then it is left out where
    processes hold parts of them and gather a block's for its passes alone (``trainer=fsdp``)."""

    def attach_(self, facts: Facts) -> str | None:
        """Take hold of a model that has just been built.

        Returns:
            None, or the reason why the acceleration does not apply; the model is then unchanged.
        """
        return None

    def start_(self, facts: Facts) -> str | None:
        """Take hold of a model that is to be trained; its device and dtypes are final. Returns the same as `attach_`.

        Raises:
            InputError: the user asked for something that cannot be done here.
        """
        return None

    def switch_(self, training: bool) -> None:
        """Follow the model into training or evaluation mode; may be called twice in a row."""
        return None

    def step(self, model: nn.Module) -> AbstractContextManager[None]:
        """The context of a training step's forward pass."""
        return nullcontext()

    def end_(self) -> None:
        """Free the resources that only training needed, at its end."""
        return None

    def detach_(self, model: nn.Module) -> None:
        """Restore the model, before its adapter is merged or shares a batch with other adapters."""
        return None


class Accelerations:
    """The accelerations of one model, in the order in which they take hold of it.

    Args:
        chosen: accelerations by their names in the config.
    """

    def __init__(self, chosen: Mapping[str, Acceleration]) -> None:
        self._on = dict(chosen)
        self.off: dict[str, str] = {}
        """The reason why an acceleration is off, by its name."""
        for name, acceleration in chosen.items():
            for other in acceleration.excludes & self._on.keys():
                self._leave_out(other, f"{name} does its work")

    @property
    def on(self) -> list[str]:
        """Names of the accelerations that hold the model, or will once it is trained."""
        return list(self._on)

    def attach_(self, facts: Facts) -> None:
        for name, acceleration in list(self._on.items()):
            self._leave_out(name, acceleration.attach_(facts))

    def start_(self, facts: Facts) -> None:
        for name, acceleration in list(self._on.items()):
            self._leave_out(name, acceleration.start_(facts))

    def switch_(self, training: bool) -> None:
        for acceleration in self._on.values():
            acceleration.switch_(training)

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as contexts:
            for acceleration in self._on.values():
                contexts.enter_context(acceleration.step(model))
            yield

    def end_(self) -> None:
        for acceleration in self._on.values():
            acceleration.end_()

    def detach_(self, model: nn.Module) -> None:
        """Restore the model, in the opposite order; from then on no acceleration is on."""
        for name, acceleration in reversed(list(self._on.items())):
            acceleration.switch_(False)
            acceleration.detach_(model)
            self._leave_out(name, "the model is plain again")

    @contextmanager
    def set_aside(self, facts: Facts) -> Iterator[None]:
        """A context in which the model is as without them; those that only training needs do not come back."""
        on, self._on = self._on, {}
        for acceleration in reversed(on.values()):
            acceleration.switch_(False)
            acceleration.detach_(facts.model)
        try:
            yield
        finally:
            self._on = on
            self.attach_(facts)

    def leave_whole_weights_(self, model: nn.Module) -> None:
        """Leave out what needs whole weights, before these are sharded over processes."""
        for name, acceleration in reversed(list(self._on.items())):
            if acceleration.needs_whole_weights:
                acceleration.switch_(False)
                acceleration.detach_(model)
                self._leave_out(name, "a process has only a part of each weight (trainer=fsdp)")

    def _leave_out(self, name: str, reason: str | None) -> None:
        if reason is not None:
            self.off[name] = reason
            del self._on[name]
