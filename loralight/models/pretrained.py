"""Pretrained models and tokenizers of transformers, from a hub name, a folder, ``pkg://`` or a GGUF file."""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    FeatureExtractionMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging as transformers_logging

from loralight.errors import InputError
from loralight.kernels.onednn import remember_few_products
from loralight.models.budget import Size, at_most
from loralight.models.fresh import take_as_given
from loralight.models.row_lengths import fill_up_
from loralight.models.shapes import without_weights
from loralight.models.strangers import check_files, size_of_weights
from loralight.models.trust import trust
from loralight.resources import resolve

_MOST = Size(tensors=200_000, values=2**50)  # for a model whose weights are not at hand

_TOKENISING = Lock()


def load_model(auto_class: Any, checkpoint: str, **arguments: Any) -> PreTrainedModel:
    """``auto_class.from_pretrained`` for every kind of checkpoint; see `fill_up_` for rows of fixed lengths.

    Args:
        auto_class: a class such as ``AutoModelForSequenceClassification``.
        checkpoint: hub name, folder or ``pkg://package/folder``, or a file ``*.gguf`` in one of these, whose quantised
            weights become float32.
        arguments: passed on.

    Raises:
        InputError: there is no such model, or it is of another kind (``E-MODEL``); it brings code or a pickle that the
            user has not allowed (``E-REMOTE-CODE``, ``E-PICKLE``).
    """
    if without_weights():
        return _skeleton(auto_class, checkpoint, **arguments)
    name, file = _source(checkpoint)
    if file:
        arguments = {"config": _gguf_config(checkpoint), "dtype": torch.float32, **file, **arguments}
    else:
        arguments = {"use_safetensors": None if trust().allow_pickle else True, **arguments}
    # a GGUF file has its own progress bar, which no setting turns off
    with _one_message(checkpoint), redirect_stderr(io.StringIO()) if file else nullcontext():
        model: PreTrainedModel
        with _no_larger_than_its_weights(checkpoint):
            model = auto_class.from_pretrained(name, **{**arguments, **_code()})
    if file and isinstance(quantizer := getattr(model, "hf_quantizer", None), HfQuantizer):
        # the weights are float32 now, but transformers would refuse to save the model
        quantizer.remove_quantization_config(model)  # type: ignore[no-untyped-call]
    fill_up_(model)
    if not any(isinstance(part, nn.Conv2d) for part in model.modules()):
        remember_few_products()
    return model


def load_classifier(auto_class: Any, checkpoint: str, labels: Sequence[str], **arguments: Any) -> PreTrainedModel:
    """A model from `load_model` with an output for each label; its head is new if the checkpoint's outputs differ.

    Raises:
        InputError: see `load_model`.
    """
    return load_model(
        auto_class,
        checkpoint,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
        **arguments,
    )


def _skeleton(
    auto_class: Any, checkpoint: str, *, ignore_mismatched_sizes: bool = False, **arguments: Any
) -> PreTrainedModel:
    """The model as its config describes it; of a weights file at hand, only the tensors' names are read."""
    name, file = _source(checkpoint)
    with _one_message(checkpoint):
        if file:
            config = _gguf_config(checkpoint)
            arguments = {"dtype": torch.float32, **arguments}
        else:
            check_files(name)
            config, arguments = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **{**arguments, **_code()})
        with at_most(_MOST, _too_large(checkpoint)):
            model: PreTrainedModel = auto_class.from_config(config, **{**arguments, **_code()})
    absent = _parts_without_weights(model, _names_of_tensors(Path(name)))
    take_as_given(parameter for key, parameter in model.named_parameters() if key not in absent)
    fill_up_(model)
    return model


def _names_of_tensors(folder: Path) -> list[str]:
    """The tensors' names in a checkpoint's header; none if the file is elsewhere or cannot be read."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError):
        return []


def _parts_without_weights(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Parameters of those parts of the base model for which a checkpoint has no tensors, such as a pooler."""
    prefix = f"{model.base_model_prefix}."
    there = {name.removeprefix(prefix).partition(".")[0] for name in names}
    parts = [(name, part) for name, part in model.base_model.named_children() if there and name not in there]
    return {f"{prefix}{name}.{key}" for name, part in parts for key, _ in part.named_parameters()}


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to ``checkpoint``.

    Raises:
        InputError: there is none (``E-MODEL``), or it brings code that the user has not allowed (``E-REMOTE-CODE``).
    """
    name, file = _source(checkpoint)
    with _one_message(checkpoint):
        check_files(name)
        return AutoTokenizer.from_pretrained(name, **_code(), **file)


def tokenise(tokenizer: PreTrainedTokenizerBase, *texts: Any, **settings: Any) -> Any:
    """``tokenizer(...)``, for one thread at a time: a tokenizer keeps padding, truncation and its text as state."""
    with _TOKENISING:
        return tokenizer(*texts, **settings)


Processor = PreTrainedTokenizerBase | ProcessorMixin | ImageProcessingMixin | FeatureExtractionMixin
"""The classes of transformers that prepare inputs and are saved with the model."""


def save_model(model: nn.Module, folder: Path, *, beside: Iterable[Processor] = ()) -> None:
    """Write a model so that its library loads it: a model of transformers with its config, any other its weights only.

    Args:
        model: the model, without adapters.
        folder: an existing folder.
        beside: tokenizers and processors, which are written with a model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        safetensors.torch.save_model(model, str(folder / "model.safetensors"))
        return
    model.save_pretrained(folder)
    for processor in beside:
        processor.save_pretrained(folder)


def longest_input(checkpoint: str, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """The most tokens that a model takes, from its tokenizer or its config; many tokenizers do not say.

    Args:
        checkpoint: the model.
        tokenizer: its tokenizer.
        wanted: a number of tokens; the model itself is inspected only if this may be beyond its table of positions.

    Raises:
        InputError: the model has no config (``E-MODEL``).
    """
    config = _config(checkpoint)
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or 0
    said: int = tokenizer.model_max_length
    if positions < 1:  # XLNet has no end, and says -1
        return said
    padding = getattr(text, "pad_token_id", None) or 0
    is_near = positions - padding - 1 < min(wanted, said)
    return min(said, positions - (_places_before_the_first(checkpoint, config, positions) if is_near else 0))


def _places_before_the_first(checkpoint: str, config: PretrainedConfig, positions: int) -> int:
    """The number of unused rows at the start of a table of ``positions``: RoBERTa and its kin count from their padding.

    Such a table has a padding row, which is looked up in the model itself, without weights.
    """
    with _one_message(checkpoint), at_most(_MOST, _too_large(checkpoint)), torch.device("meta"):
        model = AutoModel.from_config(config, **_code())  # type: ignore[no-untyped-call]
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    words = num_embeddings(model)
    paddings = [table.padding_idx for table in tables if table.num_embeddings == positions != words]
    return max((padding + 1 for padding in paddings if padding is not None), default=0)


def check_length(max_length: int, checkpoint: str, tokenizer: PreTrainedTokenizerBase, *, pair: bool = False) -> None:
    """Raise ``E-SEQ-LEN`` unless a model takes ``max_length`` tokens and its special tokens leave room for some text.

    Args:
        max_length: as ``model.max_length`` sets it.
        checkpoint: the model.
        tokenizer: its tokenizer.
        pair: whether an input is two texts.
    """
    longest = longest_input(checkpoint, tokenizer, max_length)
    if max_length > longest:
        raise InputError("E-SEQ-LEN", f"model.max_length={max_length}: the model takes {longest} tokens at most")
    marks = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= marks:
        raise InputError(
            "E-SEQ-LEN", f"model.max_length={max_length}: too short; the model's own marks take {marks} tokens"
        )


def labels_of(checkpoint: str) -> dict[int, str]:
    """The names of a classifier's outputs, from the model's config."""
    return {int(number): name for number, name in (_config(checkpoint).id2label or {}).items()}


def check_causal(checkpoint: str) -> None:
    """Raise ``E-MODEL`` if a model's tokens see later tokens, which it would copy instead of predicting.

    transformers also loads an encoder as a causal language model, and leaves its attention as it is.
    """
    config = _config(checkpoint)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        return
    if not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        raise InputError(
            "E-MODEL",
            f"model.checkpoint={checkpoint}: {config.model_type} is an encoder, whose tokens see those after them; "
            "give a causal language model, such as GPT-2, SmolLM2 or Llama",
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: str) -> None:
    """Raise ``E-TOKENIZER`` if the tokenizer has tokens for which the model has no embedding."""
    known = num_embeddings(model)
    if known is not None and len(tokenizer) > known:
        raise InputError(
            "E-TOKENIZER", f"{checkpoint}: its tokenizer has {len(tokenizer)} tokens, its embeddings {known}"
        )


def num_embeddings(model: PreTrainedModel) -> int | None:
    """The size of a model's vocabulary, from its config; None for Canine, which reads any character."""
    return getattr(model.config.get_text_config(), "vocab_size", None)


def pad_(tokenizer: PreTrainedTokenizerBase, checkpoint: str) -> None:
    """Give a tokenizer without a padding token the model's own, else the end-of-text token; it then pads on the right.

    Raises:
        InputError: there is neither of these tokens (``E-TOKENIZER``).
    """
    if tokenizer.pad_token is not None:
        return
    own: Any = getattr(_config(checkpoint).get_text_config(), "pad_token_id", None)
    is_none = own is None or not 0 <= own < len(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token if is_none else tokenizer.convert_ids_to_tokens(own)
    tokenizer.padding_side = "right"  # a decoder's tokens then see none of it, and are counted from 0
    if tokenizer.pad_token is None:
        raise InputError(
            "E-TOKENIZER",
            f"{checkpoint}: its tokenizer can fill up no short text: it has neither pad_token nor eos_token",
        )


def agree_on_padding_(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a decoder its tokenizer's padding token: as a classifier it reads the last token that is not padding.

    An encoder uses its mask, but may count positions from its own padding token, which is left as it is.
    """
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        config.pad_token_id = tokenizer.pad_token_id


def new_head(model: nn.Module, fresh: set[str]) -> list[nn.Module]:
    """The parts of a transformers model outside its pretrained base, and all other modules with new parameters.

    Args:
        model: a model from a class such as ``AutoModelForTokenClassification``.
        fresh: names of the parameters that the checkpoint did not hold.
    """
    assert isinstance(model, PreTrainedModel)
    return with_new_parts(model, outside_base_model(model), fresh)


def with_new_parts(model: nn.Module, parts: Sequence[nn.Module], fresh: set[str]) -> list[nn.Module]:
    """Parts of a model, and all other modules with new parameters; see `new_head`."""
    inside = {id(module) for part in parts for module in part.modules()}
    owners = {name.rpartition(".")[0] for name in fresh}
    others = [module for name, module in model.named_modules() if name in owners and id(module) not in inside]
    return [*parts, *others]


def outside_base_model(model: PreTrainedModel) -> list[nn.Module]:
    """The head of a transformers model: its parts outside the pretrained base that have parameters."""
    return [part for part in model.children() if part is not model.base_model and any(True for _ in part.parameters())]


def _source(checkpoint: str) -> tuple[str, dict[str, str]]:
    """The arguments of ``from_pretrained``: a name or folder, and the file in it if that is a GGUF file."""
    path = resolve(checkpoint)
    return (str(Path(path).parent), {"gguf_file": Path(path).name}) if path.endswith(".gguf") else (path, {})


def _config(checkpoint: str) -> PretrainedConfig:
    name, file = _source(checkpoint)
    if file:
        return _gguf_config(checkpoint)
    with _one_message(checkpoint):
        check_files(name)
        config: PretrainedConfig = AutoConfig.from_pretrained(name, **_code())
    return config


@cache  # transformers takes seconds to read a GGUF config, and both data and task need it
def _gguf_config(checkpoint: str) -> PretrainedConfig:
    name, file = _source(checkpoint)
    with _one_message(checkpoint):
        config: PretrainedConfig = AutoConfig.from_pretrained(name, **file)
    return config


def _code() -> dict[str, bool]:
    """Whether transformers may run a model's own code; passed each time, else transformers asks on the terminal."""
    return {"trust_remote_code": bool(trust().trust_remote_code)}


@contextmanager
def _no_larger_than_its_weights(checkpoint: str) -> Iterator[None]:
    """A context in which a model can be built only if its size, new parts included, is about that of its files."""
    name, file = _source(checkpoint)
    config = check_files(name)
    if file:  # as if a weight took one bit, which would be few
        found: Size | None = Size(_MOST.tensors, 8 * Path(name, file["gguf_file"]).stat().st_size)
    else:
        found = size_of_weights(name, config)
    most = _MOST if found is None else Size(8 * found.tensors + 2_000, 4 * found.values + 100_000_000)
    with at_most(most, _too_large(checkpoint)):
        yield


def _too_large(checkpoint: str) -> InputError:
    return InputError(
        "E-MODEL",
        f"model.checkpoint={checkpoint}: its config describes a model that is far larger than its weights are; give "
        "config.json and weights of one model",
    )


@contextmanager
def _one_message(checkpoint: str) -> Iterator[None]:
    """Report an error in one message, and silence transformers otherwise (fine-tuning always has a new head)."""
    if checkpoint.startswith(("/", ".", "~")) and not Path(checkpoint).expanduser().exists():
        kind = "file" if checkpoint.endswith(".gguf") else "folder"
        raise InputError("E-MODEL", f"model.checkpoint={checkpoint}: there is no such {kind}")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a stranger's config may make transformers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            "E-MODEL",
            f"model.checkpoint: cannot load {checkpoint!r} as a model of this task: {reason[:300]}. Give a folder with "
            "config.json and weights, a hub name (with network access), pkg://package/folder, or a *.gguf file there",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
