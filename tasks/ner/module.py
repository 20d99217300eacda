"""Named entity recognition with an encoder such as BERT."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForTokenClassification, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.data import check_smoothing, weights_of_labels
from loralight.errors import InputError
from loralight.models import check_vocabulary, depends_on_padding, each_length, load_classifier, new_head
from loralight.training import Answers

from .decoding import by_sentence, decode
from .metrics import entity_metrics
from .sentences import split_words
from .tags import spans_of, tag_names
from .windows import Encoder, join

_WINDOWS = 64  # at a time if no gradient is needed: a book has thousands


class _Read(NamedTuple):
    """An input's text, its words and their places in the text; ``split``: whether we divided the text into words."""

    text: str
    words: list[str]
    places: list[tuple[int, int]]
    split: bool


class Ner(AdapterTask):
    """A tag for each word, by a classification head on the encoder's output for the word's first sub-word.

    Batch: input_ids, attention_mask (windows, tokens); window, position (words,), the place of each word; labels
    (words,), the numbers of IOB2 tags; lengths (sentences,), in words.

    Args:
        checkpoint: a model that ``AutoModelForTokenClassification`` loads.
        labels: entity types, in the order of the head's outputs: O, B-a, I-a, B-b, I-b, ...
        label_counts: words of each tag in training, for balanced class weights and the start of a new head.
        text_column: key of the text in records given to `predict`.
        words_column: key of a list of words in such records, if they have no text.
        max_length: tokens of a window; a longer sentence is read in several.
        stride: tokens that a window shares with the next. None: 32, or a quarter of a shorter window.
        class_weights: a weight per tag in the loss, or ``balanced``: in inverse proportion to ``label_counts``.
        label_smoothing: share of the target that is spread over all tags.
        training: adapter, optimizer, scheduler, ...: see `AdapterTask`.
    """

    peft_task_type = "TOKEN_CLS"

    def __init__(
        self,
        *,
        checkpoint: str,
        labels: Sequence[str],
        label_counts: Sequence[int] | None = None,
        text_column: str = "text",
        words_column: str = "tokens",
        max_length: int = 128,
        stride: int | None = None,
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.checkpoint, self.types, self.tags = checkpoint, list(labels), tag_names(labels)
        self.text_column, self.words_column = text_column, words_column
        self.max_length, self.stride, self.label_smoothing = max_length, stride, label_smoothing
        check_smoothing(label_smoothing)
        self.label_counts = label_counts
        weights = weights_of_labels(class_weights, self.tags, label_counts)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None

    def build_model(self) -> PreTrainedModel:
        model = load_classifier(AutoModelForTokenClassification, self.checkpoint, self.tags)
        self.encoder = Encoder(checkpoint=self.checkpoint, max_length=self.max_length, stride=self.stride)
        check_vocabulary(model, self.encoder.tokenizer, self.checkpoint)
        self._by_length = depends_on_padding(model, padding=self.encoder.padding)
        return model

    def save_pretrained(self, folder: Path) -> None:
        super().save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def head(self, model: nn.Module) -> list[nn.Module]:
        return new_head(model, self.fresh(model))

    def constant_answer(self) -> Tensor | None:
        """How often each tag occurs: most words are outside of entities."""
        if self.label_counts is None:
            return None
        counts = torch.tensor(self.label_counts) + 0.5  # a tag that training lacks keeps a finite logit
        shares = counts if self.class_weights is None else counts * self.class_weights.cpu().clamp(min=1e-6)
        return (shares / shares.sum()).log()

    def tiny_batch(self) -> dict[str, Tensor]:
        ids = [*self.encoder.before, 0, 1, *self.encoder.after]
        row = {"input_ids": [ids], "window": [0], "position": [len(self.encoder.before)]}
        return {**join([row, row], self.encoder.padding), "labels": torch.zeros(2, dtype=torch.long)}

    def metrics(self) -> MetricCollection:
        return entity_metrics(self.types)

    def step(self, batch: Mapping[str, Tensor]) -> Step:
        """The mean loss over words, with the best tags by sentence; in training, which needs no tags, with logits."""
        logits, labels = self._logits(batch), batch["labels"]
        total = torch.ones_like(labels).sum() if self.class_weights is None else self.class_weights[labels].sum()
        loss = F.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        loss = loss / total.clamp(min=1e-12)  # a batch without a word has a loss of 0, and a weight of 0
        if self.training:
            return Step(loss, logits, labels, total)
        tags = decode(logits.log_softmax(-1), batch["lengths"])
        return Step(loss, tags, by_sentence(labels, batch["lengths"]), total)

    def answers(self, batch: Mapping[str, Tensor], predictions: Tensor, targets: Tensor) -> Answers:
        lengths = batch["lengths"].tolist()
        given, right = (
            [self._spans(row[:length]) for row, length in zip(tags.tolist(), lengths, strict=True)]
            for tags in (predictions, targets)
        )
        return Answers("entities", given, right, self.types)

    def _spans(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        spans = spans_of([self.tags[number] for number in numbers])
        return [{"type": span.label, "start": span.start, "end": span.end} for span in spans]

    def probed(self, features: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return features[batch["window"], batch["position"]], batch["labels"]

    def _logits(self, batch: Mapping[str, Tensor], *, by_length: bool = False) -> Tensor:
        """The logits of each word, (words, tags), in float32; with ``by_length`` windows of one length at a time."""
        size = len(batch["input_ids"]) if torch.is_grad_enabled() else _WINDOWS
        parts = zip(torch.split(batch["input_ids"], size), torch.split(batch["attention_mask"], size), strict=True)
        read = self._of_each_length if by_length else self._of_all
        logits = torch.cat([read(ids, mask) for ids, mask in parts])
        return logits[batch["window"], batch["position"]].float()

    def _of_all(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]

    def _of_each_length(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, len(self.tags), device=ids.device)
        for rows, part in each_length({"input_ids": ids, "attention_mask": mask}):
            logits[rows, : part["input_ids"].shape[1]] = self.model(**part).logits.float()
        return logits

    def predict_batch(self, inputs: Sequence[Any], *, threshold: float = 0.0) -> list[dict[str, Any]]:
        """The entities in texts, in lists of words, or in records with the data's columns.

        Args:
            inputs: words in a list are joined by spaces into a text; places refer to this text.
            threshold: the least score of an entity. The score is the mean probability of its words' tags.

        Returns:
            For each input its text and entities: type, text, start and end (in characters), score. For a list of words
            also the first word (``word_start``) and the word after the last (``word_end``).
        """
        reads = [self._read(given) for given in inputs]
        batch = join(self.encoder([read.words for read in reads]), self.encoder.padding)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        log_probabilities = self._logits(batch, by_length=self._by_length).log_softmax(-1)
        tags = decode(log_probabilities, batch["lengths"])
        chosen = by_sentence(log_probabilities, batch["lengths"]).gather(-1, tags.clamp(min=0)[..., None])[..., 0].exp()
        return [
            self._answer(read, numbers[: len(read.words)], scores, threshold)
            for read, numbers, scores in zip(reads, tags.tolist(), chosen.tolist(), strict=True)
        ]

    def _answer(
        self, read: _Read, numbers: Sequence[int], probabilities: Sequence[float], threshold: float
    ) -> dict[str, Any]:
        entities = []
        for first, last, label in spans_of([self.tags[number] for number in numbers]):
            score = round(sum(probabilities[first:last]) / (last - first), 6)
            start, end = read.places[first][0], read.places[last - 1][1]
            entity = {"type": label, "text": read.text[start:end], "start": start, "end": end, "score": score}
            words = {} if read.split else {"word_start": first, "word_end": last}
            if score >= threshold:
                entities.append({**entity, **words})
        return {"text": read.text, "entities": entities}

    def _read(self, given: Any) -> _Read:
        if isinstance(given, Mapping):
            given = given.get(self.text_column, given.get(self.words_column))
        if isinstance(given, str):
            places = split_words(given)
            return _Read(given, [given[start:end] for start, end in places], places, split=True)
        if not isinstance(given, Sequence) or not all(isinstance(word, str) and word.strip() for word in given):
            raise InputError(
                "E-INPUT",
                f"{given!r}: give a text, a list of words, or a record with {self.text_column!r} or "
                f"{self.words_column!r}",
            )
        places, start = [], 0
        for word in given:
            places.append((start, start + len(word)))
            start += len(word) + 1
        return _Read(" ".join(given), list(given), places, split=False)
