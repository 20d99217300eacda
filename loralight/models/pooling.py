"""Sentence vectors: pooling of the states of a text's tokens, and a linear classifier on the pooled state.

Many encoders' own classifiers read the first token through a layer that a checkpoint may never have trained. An encoder
that was trained for sentence vectors names its pooling in ``1_Pooling/config.json``; a classifier that reads those
vectors starts from features that are already trained.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.hub import cached_file

from loralight.errors import InputError, did_you_mean
from loralight.models.pretrained import labels_of, load_model
from loralight.models.shapes import without_weights
from loralight.models.untrusted_tensors import read_shapes
from loralight.resources import resolve
from loralight.untrusted import read_json

Pooling = Literal["mean", "first", "last", "max"]
PoolingChoice = Pooling | Literal["auto", "model"]
"""The choices of a task: a pooling, the checkpoint's own, or the classifier of the model's class."""


_CONFIG = "1_Pooling/config.json"  # of sentence-transformers
_DENSE = "2_Dense"  # the folder of the classifier
_IDENTITY = "torch.nn.modules.linear.Identity"
_FLAGS = {  # sentence-transformers' name for each pooling; exactly one is true in a file
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
_MODES = {"mean": "mean", "cls": "first", "lasttoken": "last", "max": "max"}  # "pooling_mode" in newer files


class PooledClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """A linear layer on the pooled states of any encoder or decoder of transformers.

    The base has the name that transformers' own classes give it, so that tasks share it. The classifier has its own
    name, so that PEFT refuses a pooled model's adapter on a class whose classifier reads something else.

    Args:
        base: gives ``last_hidden_state`` (batch, tokens, width).
        pooling: ``mean`` of a text's tokens, their ``max``, or the ``first`` or ``last`` of them.
        num_labels: number of outputs.
        max_length: tokens of a text that are read; `save_pretrained` writes it for later users.
        dropout: dropout probability of the pooled state.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self, base: PreTrainedModel, *, pooling: Pooling, num_labels: int, max_length: int, dropout: float = 0.1
    ) -> None:
        super().__init__(base.config)
        self.base_model_prefix = base.base_model_prefix or "model"  # as in other tasks on the same base
        self.pooling, self.max_length = pooling, max_length
        self._unread: dict[str, Tensor] = {}  # saved again, else a loader would warn that it is missing
        if isinstance(pooler := getattr(base, "pooler", None), nn.Module):
            self._unread = {f"pooler.{name}": tensor for name, tensor in pooler.state_dict().items()}
            base.pooler = None  # type: ignore[assignment]
        setattr(self, self.base_model_prefix, base)
        self.dropout = nn.Dropout(dropout)
        self.pooled_classifier = nn.Linear(base.config.get_text_config().hidden_size, num_labels)
        nn.init.normal_(self.pooled_classifier.weight, std=0.02)
        nn.init.zeros_(self.pooled_classifier.bias)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels) from token ids and their mask, both (batch, tokens)."""
        inputs.pop("labels", None)  # the loss is the task's
        base: Any = self.base_model
        states = base(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        return SequenceClassifierOutput(
            logits=self.pooled_classifier(self.dropout(pool(states, attention_mask, self.pooling)))
        )

    def save_pretrained(self, save_directory: str | PathLike[Any], *_: Any, **__: Any) -> None:
        """Write the model in the format of sentence-transformers, whose ``encode`` then returns the logits of texts.

        ``AutoModel`` loads the encoder in it, with the labels in its config.
        """
        folder = Path(save_directory)
        dtype = self.pooled_classifier.weight.dtype
        unread = {name: tensor.to(dtype) for name, tensor in self._unread.items()}
        base: Any = self.base_model
        base.save_pretrained(folder, state_dict={**base.state_dict(), **unread})
        for path, content in _sentence_transformers(self).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        tensors = {
            f"linear.{name}": tensor.contiguous() for name, tensor in self.pooled_classifier.state_dict().items()
        }
        save_file(tensors, folder / _DENSE / "model.safetensors")


def _sentence_transformers(model: PooledClassifier) -> dict[str, Any]:
    """The JSON files of sentence-transformers: encoder, pooling and classifier, one after another."""
    width, num_labels = model.pooled_classifier.in_features, model.pooled_classifier.out_features
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), (_DENSE, "Dense")]
    return {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": model.max_length, "do_lower_case": False},
        _CONFIG: {"word_embedding_dimension": width, **{flag: n == model.pooling for n, flag in _FLAGS.items()}},
        f"{_DENSE}/config.json": {
            "in_features": width,
            "out_features": num_labels,
            "bias": True,
            "activation_function": _IDENTITY,
        },
    }


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector (batch, width) from the ``states`` (batch, tokens, width) of those tokens that ``mask`` keeps."""
    kept = mask.bool()
    if pooling == "mean":
        weights = kept.to(states.dtype)
        return torch.einsum("btw,bt->bw", states, weights / weights.sum(1, keepdim=True))
    if pooling == "max":
        return states.masked_fill(~kept.unsqueeze(-1), float("-inf")).amax(1)
    places = torch.arange(states.shape[1], device=states.device).expand_as(mask)
    if pooling == "first":
        place = places.masked_fill(~kept, states.shape[1]).amin(1)
    else:
        place = places.masked_fill(~kept, -1).amax(1)
    return states[torch.arange(len(states), device=states.device), place]


def load_encoder(checkpoint: str) -> PreTrainedModel:
    """A pretrained model whose tokens' states are read; it has no pooler, which nothing would train.

    Raises:
        InputError: see `load_model`.
    """
    model = load_model(AutoModel, checkpoint)
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]
    return model


def load_pooled(
    checkpoint: str, *, pooling: Pooling, labels: Sequence[str], max_length: int, **config: Any
) -> PooledClassifier:
    """A pretrained model with a linear classifier on its pooled states.

    The classifier is new unless the checkpoint has a classifier with these labels.

    Args:
        checkpoint: see `load_model`.
        pooling: see `PooledClassifier`.
        labels: names of the classifier's outputs.
        max_length: tokens of a text that are read.
        config: further settings of the model's config.

    Raises:
        InputError: see `load_model`; or the model gives no states of one width for its tokens (``E-POOLING``).
    """
    names = dict(enumerate(labels))
    numbers = {name: number for number, name in names.items()}
    base = load_model(AutoModel, checkpoint, id2label=names, label2id=numbers, **config)
    text = base.config.get_text_config()
    if base.config.is_encoder_decoder or not isinstance(getattr(text, "hidden_size", None), int):
        raise InputError(
            "E-POOLING",
            f"task.pooling={pooling}: {base.config.model_type} gives no states of its tokens to pool; set "
            "task.pooling=model, which is the classifier of its own",
        )
    model = PooledClassifier(base, pooling=pooling, num_labels=len(names), max_length=max_length)
    _load_classifier_(model, checkpoint, names)
    return model


def _load_classifier_(model: PooledClassifier, checkpoint: str, names: Mapping[int, str]) -> None:
    """Load the classifier next to a checkpoint's weights into ``model``, if it has these labels."""
    file = _file_of(checkpoint, f"{_DENSE}/config.json")
    if file is None or not (weights := file.parent / "model.safetensors").is_file():
        return
    written = read_json(file)
    same = written.get("out_features") == len(names) and written.get("activation_function") == _IDENTITY
    if not same or without_weights() or labels_of(checkpoint) != dict(names):
        return
    found = {name: tensor.shape for name, tensor in read_shapes(weights).items()}
    if found != {f"linear.{name}": tensor.shape for name, tensor in model.pooled_classifier.state_dict().items()}:
        return
    tensors = load_file(weights)
    model.pooled_classifier.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})


def find_pooling(checkpoint: str) -> Pooling | None:
    """The pooling that a checkpoint was trained with, from its ``1_Pooling/config.json``; None without this file.

    Raises:
        InputError: the file names no pooling that is known here, or several (``E-POOLING``).
    """
    found = _file_of(checkpoint, _CONFIG)
    if found is None:
        return None
    config = read_json(found)
    mode = config.get("pooling_mode")
    named = {_MODES.get(mode, mode)} if isinstance(mode, str) else {n for n, flag in _FLAGS.items() if config.get(flag)}
    for pooling in get_args(Pooling):
        if named == {pooling}:
            return pooling  # type: ignore[no-any-return]
    raise InputError(
        "E-POOLING",
        f"{checkpoint}: its {_CONFIG} names no single pooling of {', '.join(get_args(Pooling))}; choose with "
        "task.pooling=",
    )


def check_pooling(pooling: str) -> None:
    """Raise ``E-POOLING`` unless ``pooling`` is a pooling, ``auto``, or ``model`` for the model's own classifier."""
    possible = ["auto", "model", *get_args(Pooling)]
    if pooling not in possible:
        hint = did_you_mean(str(pooling), possible)
        raise InputError("E-POOLING", f"task.pooling={pooling}.{hint} Possible: {', '.join(possible)}")


def _file_of(checkpoint: str, file: str) -> Path | None:
    """A file of sentence-transformers next to a checkpoint's weights, in a folder or on the hub."""
    name = resolve(checkpoint)
    path = Path(name)
    if path.suffix == ".gguf":
        return None
    if path.is_dir():
        return path / file if (path / file).is_file() else None
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
