"""A context in which a model computes without its adapter: preference losses compare with the base model."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from threading import Lock
from typing import NamedTuple

import torch
from torch import nn

from loralight.errors import InputError


class Switchable(nn.Module):
    """A module that an adapter has changed. Where `is_off` holds, it computes as it did before the change.

    The same is true of all modules inside it.
    """


class _Off(NamedTuple):
    """Names the adapted modules that are switched off.

    Args:
        modules: all modules of the models.
        task: the number of the backward pass in which they were switched off; -1 outside a backward pass.
    """

    modules: frozenset[nn.Module]
    task: int


_NOTHING = _Off(frozenset(), -1)
_OFF: ContextVar[_Off] = ContextVar("off", default=_NOTHING)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """A context in which ``model`` computes as its base does, bit for bit.

        with torch.no_grad(), disabled(model):
            reference = model(**batch).logits

    It acts on this model in this thread only: other threads may use the model with its adapter meanwhile. Where each
    row has its own adapter (`by_rows`), all rows are computed by the base. Gradients are computed as usual, but none
    goes to the adapter. A compiled model computes uncompiled. The base's own dropout is on in training mode, and a
    trained head has its current weights. Accelerations stay on: where they round differently in training, with
    gradients, they also do so here. PyTorch's own encoder layers call their parts instead of the fused kernel wherever
    the adapter makes them do so.

    Gradient checkpointing recomputes each pass with the adapter on or off as in the forward pass, if it is told so: by
    ``acceleration=gradient_checkpointing`` for models of transformers, by ``context_fn=as_computed`` elsewhere.

    Args:
        model: an adapted model, or a part of it; it may be wrapped in DDP or torch.compile.

    Raises:
        InputError: the adapter trains the base's own weights, so that there is no base left, or its layers cannot be
            switched off; or this is called in compiled code (``E-DISABLED``).
    """
    _refuse_what_stays_on(model)
    with _uncompiled(), _SwitchedOff(_modules_off() | frozenset(model.modules())):
        yield


def is_off(module: nn.Module) -> bool:
    """Whether ``module`` is to compute without its adapter in this call.

    It is always False in compiled code: a compiler could not guard it.
    """
    return not torch.compiler.is_compiling() and module in _OFF.get().modules and module in _modules_off()


def as_computed() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A ``context_fn`` for `torch.utils.checkpoint.checkpoint`: recomputation has adapters on or off as now."""
    return nullcontext(), _SwitchedOff(_modules_off())


def trains_(modules: Iterable[nn.Module], by: str) -> None:
    """Record in modules the method that trains their parameters or statistics, so that `disabled` can refuse them."""
    for module in modules:
        vars(module)["trained_by"] = by


def trained_by(module: nn.Module) -> str | None:
    """The method that trains a module's own parameters; None in a head, or if they are frozen."""
    found: str | None = vars(module).get("trained_by")
    return found


def forget_(model: nn.Module) -> None:
    """Undo `trains_`, once the trained values are the base's own."""
    for module in model.modules():
        vars(module).pop("trained_by", None)


def _modules_off() -> frozenset[nn.Module]:
    """The modules that are off here; in a backward pass these are set by a checkpoint, not by a context around it."""
    modules, task = _OFF.get()
    return modules if task == torch._C._current_graph_task_id() else frozenset()


class _SwitchedOff(AbstractContextManager[None]):
    """A context that can be entered again, as a checkpoint whose graph is kept does in each backward pass."""

    def __init__(self, modules: frozenset[nn.Module]) -> None:
        self._modules = modules
        self._tokens: list[Token[_Off]] = []

    def __enter__(self) -> None:
        self._tokens.append(_OFF.set(_Off(self._modules, torch._C._current_graph_task_id())))

    def __exit__(self, *_: object) -> None:
        _OFF.reset(self._tokens.pop())


def _refuse_what_stays_on(model: nn.Module) -> None:
    switched = {part for module in model.modules() if isinstance(module, Switchable) for part in module.modules()}
    for name, module in model.named_modules():
        if (method := vars(module).get("trained_by")) and module not in switched:
            raise InputError(
                "E-DISABLED",
                f"{method} trains {name} ({type(module).__name__}), which cannot be switched off: no base is left to "
                "compute with. Choose a method that adds to the base, such as lora",
            )


_SWITCHING = Lock()
_num_uncompiled = 0  # contexts that are open, in all threads
_stances: list[AbstractContextManager[None]] = []


@contextmanager
def _uncompiled() -> Iterator[None]:
    """A context in which no thread runs compiled code, as a compiler does not check whether an adapter is on."""
    global _num_uncompiled
    with _SWITCHING:
        if not _num_uncompiled and "torch._dynamo" in sys.modules:  # else nothing is compiled
            _stances.append(_stop_compiled_code())
        _num_uncompiled += 1
    try:
        yield
    finally:
        with _SWITCHING:
            _num_uncompiled -= 1
            if not _num_uncompiled and _stances:
                _stances.pop().__exit__(None, None, None)


def _stop_compiled_code() -> AbstractContextManager[None]:
    if not torch.compiler.is_compiling():
        try:
            return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]  # from here on
        except RuntimeError:
            pass  # compiled code calls; not raised from here: torch 2.10 cannot compile an error with a context
    raise InputError(
        "E-DISABLED",
        "adapters are switched off in code that torch.compile runs, which would not notice; compile the model alone "
        "(model.compile()), not what calls it",
    )
