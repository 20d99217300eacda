"""A stack of blocks that is given the tokens of a batch in one line, in the place of a padded rectangle.

Linear layers, norms and activations take tokens one by one. Attention is given the rows, in the place of its mask. All
other inputs of a block that have a place for each token, such as rotations, are brought into the same line.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loralight.acceleration.ragged import Ragged
from loralight.errors import InputError
from loralight.models.blocks import blocks

_IS_OFF: ContextVar[bool] = ContextVar("unpadding_is_off", default=False)
_GIVEN: ContextVar[tuple[Ragged | None, ...]] = ContextVar("rows_of_the_batch", default=())
_OF_EACH_ROW = -1  # the axis of tokens in a tensor with rows of its own


@contextmanager
def padded() -> Iterator[None]:
    """A context in which padding is kept, for code that has to tell a batch's rows apart inside the model."""
    token = _IS_OFF.set(True)
    try:
        yield
    finally:
        _IS_OFF.reset(token)


def rows_given() -> Ragged | None:
    """The rows of the batch that the model is computing, if its tokens go into a line."""
    return _GIVEN.get()[-1] if _GIVEN.get() else None


class Stack:
    """The blocks of a model's encoder, or of a decoder without an encoder.

    Args:
        path: the modules from the base model to the one that holds the blocks, each inside the one before.
    """

    def __init__(self, path: dict[str, nn.Module]) -> None:
        self.path = list(path.values())
        self.owner = self.path[-1]
        self.blocks = list(blocks(dict(self.owner.named_modules())).values())


def stack_of(model: PreTrainedModel) -> Stack | None:
    """The blocks of ``model``; None if it has none, or has them in several modules."""
    base = model.base_model
    modules = dict(base.named_modules())
    first = _encoder_of(base)
    try:
        names = [name for name in blocks(modules) if name.startswith(first)]
    except InputError:
        return None
    owners = {_before_a_number(name) for name in names}
    if len(owners) != 1:
        return None
    parts = owners.pop().split(".")
    path = {".".join(parts[:depth]): modules[".".join(parts[:depth])] for depth in range(len(parts) + 1)}
    return Stack({name: module for name, module in path.items() if f"{name}.".startswith(first)})


def _encoder_of(base: nn.Module) -> str:
    """What the names of an encoder's modules begin with; the decoder after it attends to padding's places."""
    if not isinstance(base, PreTrainedModel) or not base.config.is_encoder_decoder:
        return ""
    encoder = base.get_encoder()
    return next((f"{name}." for name, module in base.named_modules() if name and module is encoder), "")


def _before_a_number(name: str) -> str:
    """The owner of the list that a block is in, or of the list of lists."""
    parts = name.split(".")
    return ".".join(parts[: next((place for place, part in enumerate(parts) if part.isdecimal()), 1) - 1])


class Lines:
    """Hooks by which a stack's blocks are given tokens in a line, and what comes out is padded again.

    Args:
        hands_on: whether the owner of the blocks is given the rows in the place of the mask, to hand them on;
            elsewhere the function that makes the mask gives them.
        needs_beginnings: whether attention goes by the distance in the line, so that a row may have no gap.
        at_block: whether the last block's output is padded, in the place of the stack's.
    """

    def __init__(self, *, hands_on: bool = False, needs_beginnings: bool = False, at_block: bool = False) -> None:
        self._hands_on, self._needs_beginnings, self._at_block = hands_on, needs_beginnings, at_block
        self._axes: dict[tuple[Any, ...], int] = {}
        self._is_learning = False
        self.count = 0

    def hang_(self, stack: Stack) -> list[RemovableHandle]:
        """Register the hooks."""
        hooks = [module.register_forward_pre_hook(self._take_rows, with_kwargs=True) for module in stack.path]
        hooks += [block.register_forward_pre_hook(self._line_up, with_kwargs=True) for block in stack.blocks]
        if self._at_block:
            hooks.append(stack.blocks[-1].register_forward_hook(_pad_block, with_kwargs=True))
        # an adapter's own hook at the base model expects a rectangle
        hooks.append(stack.owner.register_forward_hook(_pad, prepend=True))
        hooks += [module.register_forward_hook(_let_go, always_call=True) for module in stack.path]
        if self._hands_on:
            hooks.append(stack.owner.register_forward_pre_hook(_hand_on, with_kwargs=True))
        return hooks

    @contextmanager
    def learning(self) -> Iterator[None]:
        """A context in which the first batch shows which inputs of a block have a place for each token.

        Its shapes are no others' by chance, as those of a later batch may be.
        """
        self._is_learning = True
        try:
            yield
        finally:
            self._is_learning = False

    def _take_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():  # a compiled model takes rectangles
            return
        given = _by_name(module, args, kwargs)
        mask = given.get("attention_mask")
        outer = rows_given()
        is_inner = outer is not None and (mask is outer.source or not isinstance(mask, Tensor) or mask.ndim != 2)
        rows = outer if is_inner else self._rows(module, given, mask)
        _GIVEN.set((*_GIVEN.get(), rows))

    def _rows(self, module: nn.Module, given: dict[str, Any], mask: Any) -> Ragged | None:
        if _IS_OFF.get() or not isinstance(mask, Tensor) or mask.ndim != 2 or _is_asked_for_more(module, given):
            return None
        others = (one for one in given.values() if isinstance(one, Tensor) and one is not mask)
        is_whole = any(one.shape[:2] == mask.shape for one in others)  # not behind a cache, say
        # classifiers read the first place, so it must be a token; a GPU waits for the answer
        if not is_whole or given.get("encoder_hidden_states") is not None or not mask[:, 0].all():
            return None
        rows = Ragged(mask)
        return None if self._needs_beginnings and not rows.begins_at_once else rows

    def _line_up(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give a block lines in the place of rectangles."""
        rows = _among(args, kwargs)
        if rows is None:
            return None
        self.count += self._is_learning
        lined = tuple(self._lined(one, (place,), rows) for place, one in enumerate(args))
        return lined, {name: self._lined(one, (name,), rows) for name, one in kwargs.items()}

    def _lined(self, given: Any, name: tuple[Any, ...], rows: Ragged) -> Any:
        if type(given) in (tuple, list):
            return type(given)(self._lined(one, (*name, place), rows) for place, one in enumerate(given))
        if not isinstance(given, Tensor):
            return given
        if self._is_learning and (axis := _axis_of_tokens(given, rows)) is not None:
            self._axes[name] = axis
        axis = self._axes.get(name)
        if axis is None:
            return given
        if given.shape[:2] == rows.shape and (axis == _OF_EACH_ROW or (axis == 1 and len(given) > 1)):
            return rows.line_up(given) if given.ndim == 3 else rows.line_up(given.unsqueeze(-1)).squeeze(-1)
        is_shared = axis != _OF_EACH_ROW and given.shape[axis] == rows.shape[1]
        return rows.line_up_columns(given, axis) if is_shared else given


def _pad(owner: nn.Module, args: Any, output: Any) -> Any:
    """Put the line of what a stack returns in a rectangle."""
    rows = None if torch.compiler.is_compiling() else rows_given()
    if rows is None:
        return None
    if isinstance(output, Tensor | tuple):
        return _with_first(output, _padded(_first(output), rows))
    output["last_hidden_state"] = _padded(output["last_hidden_state"], rows)
    if output.get("hidden_states") is not None:  # DeBERTa reads the last of them
        output["hidden_states"] = (*output["hidden_states"][:-1], output["last_hidden_state"])
    return output


def _pad_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The same for a block, behind which may stand code that reads other places than the first."""
    rows = _among(args, kwargs)
    if rows is None:
        return None
    states = _first(output)
    if states.shape[1] != sum(rows.lengths):
        raise ValueError("what follows the last block is given every token")
    return _with_first(output, _padded(states, rows))


def _first(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _with_first(output: Any, states: Tensor) -> Any:
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ragged | None:
    return next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _is_asked_for_more(module: nn.Module, given: dict[str, Any]) -> bool:
    """Whether the caller wants states of all blocks, or attention's probabilities, of which no line is padded again."""
    config = getattr(module, "config", None)
    names = ("output_hidden_states", "output_attentions")
    asked = [given[name] if given.get(name) is not None else getattr(config, name, False) for name in names]
    return any(asked)


def _hand_on(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rows = None if torch.compiler.is_compiling() else rows_given()
    return None if rows is None else ((), {**_by_name(owner, args, kwargs), "attention_mask": rows})


def _let_go(*_: Any) -> None:
    if not torch.compiler.is_compiling():
        _GIVEN.set(_GIVEN.get()[:-1])


def _axis_of_tokens(given: Tensor, rows: Ragged) -> int | None:
    """The axis along which ``given`` has the columns of the rectangle; None if it has none."""
    longest = rows.shape[1]
    if given.shape[:2] == rows.shape and given.ndim == 2 + given.is_floating_point():
        return _OF_EACH_ROW
    if given.is_floating_point() and given.ndim == 2 and len(given) == longest:
        return 0
    return 1 if given.shape[:2] == (1, longest) and given.ndim == 2 + given.is_floating_point() else None


def _padded(states: Tensor, rows: Ragged) -> Tensor:
    if states.shape[:2] == rows.shape:  # one row, or blocks that were given none
        return states
    return rows.pad(states) if states.shape[1] == sum(rows.lengths) else rows.pad_firsts(states)
