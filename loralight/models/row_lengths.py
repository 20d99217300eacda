"""Models that take rows of certain lengths alone: their rows are filled up, and their outputs cut again.

Reformer trains on rows of one length, Nystromformer may compute on no others at all, and other architectures take
multiples of a number. None is known here by name: a model that fails on short rows is tried, without weights, on the
lengths that the numbers in its config give.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.shapes import shapes_only

_NUM_ROWS, _SHORT = 5, 7  # prime, so that no model can divide their tokens among other rows
_LONGEST = 2**20  # tokens


class RowLength(NamedTuple):
    """A length that a model takes.

    Args:
        tokens: the length.
        setting: the setting of the model's config that gives it, with its value.
        is_step: whether multiples of the length are taken too.
    """

    tokens: int
    setting: str
    is_step: bool

    def at_least(self, tokens: int) -> int | None:
        """The least length from ``tokens`` on that the model takes; None if there is none."""
        if self.is_step:
            return math.ceil(tokens / self.tokens) * self.tokens
        return self.tokens if tokens <= self.tokens else None


def fill_up_(model: PreTrainedModel) -> None:
    """Let a model that takes rows of certain lengths alone take shorter ones too; any other stays as it is.

    Its rows are filled up on the right with padding that the mask leaves out, and the states of the padding are cut off
    again. A model whose attention is PyTorch's takes rows of any length.

    Raises:
        InputError: it fails on rows that are filled up (``E-SEQ-LEN``).
    """
    base = model.base_model
    if model._supports_sdpa or not isinstance(base, PreTrainedModel) or _takes(base, _SHORT, training=True):
        return
    found = _length_of(base)
    if found is None:  # it fails for another reason, which its first batch will tell
        return
    base.forward = _FillingUp(base, found, always=not _takes(base, _SHORT, training=False))
    logger.info(
        "%s takes rows of %s%d tokens alone (its config's %s): shorter ones are filled up",
        type(model).__name__,
        "multiples of " if found.is_step else "",
        found.tokens,
        found.setting,
    )


@dataclass(eq=False)
class _FillingUp:
    """Replaces a base model's own forward pass.

    Args:
        always: whether rows are filled up in evaluation mode too.
    """

    module: PreTrainedModel
    length: RowLength
    always: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = type(self.module).forward
        names = list(signature(plain).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        tokens = given.get("input_ids", given.get("inputs_embeds"))
        is_wanted = self.always or any(part.training for part in self.module.modules())
        if not is_wanted or not isinstance(tokens, Tensor):
            return plain(self.module, *args, **kwargs)
        shape, width = tokens.shape[:2], self._width(tokens.shape[1])
        if "attention_mask" in names and given.get("attention_mask") is None:
            given["attention_mask"] = torch.ones(shape, dtype=torch.long, device=tokens.device)
        padding = getattr(self.module.config.get_text_config(), "pad_token_id", None) or 0
        filled = {name: _filled(name, value, shape, width, padding) for name, value in given.items()}
        output = plain(self.module, **filled)
        is_wide = partial(_has_shape, shape=(shape[0], width))
        return tree_map_only(Tensor, lambda one: one[:, : shape[1]] if is_wide(one) else one, output)

    def _width(self, tokens: int) -> int:
        width = self.length.at_least(tokens)
        if width is None:
            raise InputError(
                "E-SEQ-LEN",
                f"a batch has {tokens} tokens in a row, and {type(self.module).__name__} takes rows of exactly "
                f"{self.length.tokens} (its config's {self.length.setting}); set model.max_length={self.length.tokens}",
            )
        return width


def _has_shape(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether the first axes of a tensor, rows and tokens, have these sizes."""
    return tensor.ndim > 1 and tuple(tensor.shape[:2]) == tuple(shape)


def _filled(name: str, value: Any, shape: Sequence[int], width: int, padding: int) -> Any:
    """An argument for longer rows, if it has a value for each token."""
    if not isinstance(value, Tensor) or not _has_shape(value, shape):
        return value
    more = width - shape[1]
    if name == "position_ids":  # which a table of positions looks up
        return torch.cat([value, value[:, -1:] + torch.arange(1, more + 1, device=value.device)], dim=1)
    return F.pad(value, (0, 0) * (value.ndim - 2) + (0, more), value=padding if name == "input_ids" else 0)


def _length_of(base: PreTrainedModel) -> RowLength | None:
    """The least length that a model takes, of those in its config."""
    with shapes_only(), _silence():
        skeleton = type(base)(base.config)
        for tokens, setting in _lengths_in(base.config.get_text_config().to_dict()):
            if _takes(skeleton, tokens, training=True):
                _check_padding(skeleton, tokens, setting)
                return RowLength(tokens, setting, is_step=_takes(skeleton, 2 * tokens, training=True))
    return None


def _check_padding(skeleton: PreTrainedModel, tokens: int, setting: str) -> None:
    if not _takes(skeleton, tokens, training=True, padding=1):
        raise InputError(
            "E-SEQ-LEN",
            f"{type(skeleton).__name__} takes rows of exactly {tokens} tokens (its config's {setting}), and its code "
            "fails where a part of them is padding, so that shorter rows cannot be filled up. Give another "
            "model.checkpoint",
        )


def _lengths_in(config: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The numbers and the products of lists of numbers in a config, from small to large, with their settings."""
    found: dict[int, list[str]] = {}
    for name, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if numbers and all(type(number) is int and number > 0 for number in numbers):
            found.setdefault(math.prod(numbers), []).append(f"{name}={value}")
    yield from sorted((tokens, " or ".join(said)) for tokens, said in found.items() if _SHORT < tokens <= _LONGEST)


@torch.no_grad()
def _takes(base: PreTrainedModel, tokens: int, *, training: bool, padding: int = 0) -> bool:
    """Whether a model computes on rows of so many tokens, of which the last are padding."""
    ids = torch.ones(_NUM_ROWS, tokens, dtype=torch.long, device=base.device)
    given = {"input_ids": ids, "attention_mask": F.pad(ids[:, padding:], (0, padding))}
    if base.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids[:, :1]
    with _as_before(base):
        base.train(training)
        try:
            base(**given)
        except Exception:  # from a model's own code
            return False
    return True


@contextmanager
def _silence() -> Iterator[None]:
    """A context in which torch does not print the errors of operators on shapes alone, which are expected."""
    told = logging.getLogger("torch._subclasses.fake_tensor")
    was_off, told.disabled = told.disabled, True
    try:
        yield
    finally:
        told.disabled = was_off


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """A context that restores random states, modes, and buffers such as a BatchNorm's statistics."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for buffer, kept in buffers:
                buffer.copy_(kept)
