"""A context in which a model computes with its base alone: preference losses compare with the base."""

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
    """A module that an adapter has changed. Where `is_off` says so, it computes as it did before the change.

    That holds for all that is in it, too.
    """


class _Off(NamedTuple):
    """Names the adapted modules that are switched off.

    Args:
        modules: all modules of the models.
        task: the number of the backward pass in which they were, -1 outside of any.
    """

    modules: frozenset[nn.Module]
    task: int


_NOTHING = _Off(frozenset(), -1)
_OFF: ContextVar[_Off] = ContextVar("off", default=_NOTHING)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute as its base does, bit for bit, while the context lasts.

        with torch.no_grad(), disabled(model):
            reference = model(**batch).logits

    That holds in this thread, for this model: other threads may use it with its adapter meanwhile. Where rows have
    adapters of their own (`by_rows`), all rows are the base's. Gradients are computed as they are elsewhere, and none
    goes to the adapter. A compiled model computes uncompiled. Dropout of the base's own is on in training mode, a head
    that learns is as it is by then, and accelerations stay on: what they round otherwise in training, with gradients,
    they do here. Only PyTorch's own encoder layers are computed part by part wherever the adapter has them so.

    Gradient checkpointing recomputes each pass with the adapter on or off as it was, if the checkpoint is told: by
    ``acceleration=gradient_checkpointing`` for models of transformers, by ``context_fn=as_computed`` elsewhere.

    Args:
        model: an adapted model, or a part of it, also where DDP or torch.compile is around it.

    Raises:
        InputError: the adapter trains the base's own weights, so that there is no base left, or its layers cannot be
            switched off; or this is called in compiled code (``E-DISABLED``).
    """
    _refuse_what_stays_on(model)
    with _uncompiled(), _SwitchedOff(_modules_off() | frozenset(model.modules())):
        yield


def is_off(module: nn.Module) -> bool:
    """Whether ``module`` is to compute without its adapter in this call.

    Code that is compiled never is, so that a compiler need not look at what it could not guard.
    """
    return not torch.compiler.is_compiling() and module in _OFF.get().modules and module in _modules_off()


def as_computed() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The ``context_fn`` of `torch.utils.checkpoint.checkpoint`: the recomputation has adapters on or off as now."""
    return nullcontext(), _SwitchedOff(_modules_off())


def trains_(modules: Iterable[nn.Module], by: str) -> None:
    """Note of modules which method trains parameters or statistics of theirs, for what `disabled` has to refuse."""
    for module in modules:
        vars(module)["trained_by"] = by


def trained_by(module: nn.Module) -> str | None:
    """The method that trains a module's own parameters; None for a head's and for frozen ones."""
    found: str | None = vars(module).get("trained_by")
    return found


def forget_(model: nn.Module) -> None:
    """Undo `trains_`, once what was trained is the base's own."""
    for module in model.modules():
        vars(module).pop("trained_by", None)


def _modules_off() -> frozenset[nn.Module]:
    """Those that are off here: a backward pass does not see what is off around it, but what a checkpoint tells."""
    modules, task = _OFF.get()
    return modules if task == torch._C._current_graph_task_id() else frozenset()


class _SwitchedOff(AbstractContextManager[None]):
    """A context that can be entered again, as one that keeps its graph is in each backward pass."""

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
    """No compiled code runs meanwhile, in any thread: whether an adapter is on is nothing that a compiler looks at."""
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
