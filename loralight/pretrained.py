"""Pretrained models and tokenizers of transformers, from a hub name, a folder or ``pkg://``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from loralight.errors import InputError
from loralight.resources import resolve


def load_model(auto_class: Any, checkpoint: str, **arguments: Any) -> PreTrainedModel:
    """``auto_class.from_pretrained``, which also notes in ``fresh_parameters`` what the checkpoint did not hold.

    Args:
        auto_class: such as ``AutoModelForSequenceClassification``.
        checkpoint: hub name, folder or ``pkg://package/folder``.
        arguments: passed on.

    Raises:
        InputError: there is no such model, or none of this kind (``E-MODEL``).
    """
    with _one_message(checkpoint):
        model: PreTrainedModel
        model, info = auto_class.from_pretrained(resolve(checkpoint), output_loading_info=True, **arguments)
    model.__dict__["fresh_parameters"] = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    return model


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to ``checkpoint``.

    Raises:
        InputError: there is none (``E-MODEL``).
    """
    with _one_message(checkpoint):
        return AutoTokenizer.from_pretrained(resolve(checkpoint))


def longest_input(checkpoint: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model takes at most, as its tokenizer or its config says; many a tokenizer says nothing.

    Raises:
        InputError: the model has no config (``E-MODEL``).
    """
    with _one_message(checkpoint):
        positions = getattr(AutoConfig.from_pretrained(resolve(checkpoint)), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def outside_base_model(model: PreTrainedModel) -> list[nn.Module]:
    """The head of a transformers model: its parts beside the pretrained base, as far as they have parameters."""
    return [part for part in model.children() if part is not model.base_model and any(True for _ in part.parameters())]


@contextmanager
def _one_message(checkpoint: str) -> Iterator[None]:
    """Say what is wrong in one message; be silent on what is right (a new head is what fine-tuning is about)."""
    if checkpoint.startswith(("/", ".", "~")) and not Path(checkpoint).expanduser().is_dir():
        raise InputError("E-MODEL", f"model.checkpoint={checkpoint}: there is no such folder")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            "E-MODEL",
            f"model.checkpoint: cannot load {checkpoint!r} as a model of this task: {reason[:300]}. Give a folder with "
            "config.json and weights, a hub name (with network access), or pkg://package/folder",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
