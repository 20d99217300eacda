"""Text classification with an encoder such as BERT."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.data import check_smoothing, weights_of_labels
from loralight.errors import InputError
from loralight.models import (
    PoolingChoice,
    agree_on_padding_,
    check_pooling,
    check_vocabulary,
    depends_on_padding,
    each_length,
    find_pooling,
    load_classifier,
    load_pooled,
    load_tokenizer,
    new_head,
    pad_,
    tokenise,
)
from loralight.training import (
    Answers,
    answers_of_labels,
    check_temperature,
    check_thresholds,
    choose_thresholds,
    fit_temperature,
)

from .metrics import classification_metrics


class TextClassification(AdapterTask):
    """A classification head on an encoder.

    Batch: input_ids, attention_mask (batch, tokens); labels (batch,), or (batch, labels) if ``multi_label``.

    Args:
        checkpoint: a model that ``AutoModelForSequenceClassification`` loads, or ``AutoModel`` if there is a pooling.
        labels: label names, in the order of the head's outputs.
        label_counts: rows of each label in training; only needed for balanced class weights, and if ``multi_label``
            with ``num_rows`` for the start of a new head.
        num_rows: rows in training.
        multi_label: whether a row may have any number of labels.
        text_columns: keys of the text, or pair of texts, in records given to `predict`.
        max_length: tokens of a text that are read.
        pooling: the classifier's input from a text's tokens: their ``mean`` or ``max``, the ``first`` or the ``last``;
            ``model`` for the classifier of the model's own class; ``auto`` for the pooling of the checkpoint's training
            (sentence-transformers' ``1_Pooling/config.json``), and ``model`` if it does not say.
        class_weights: a weight per label in the loss, or ``balanced``: in inverse proportion to ``label_counts``.
        label_smoothing: share of the target that is spread over all labels.
        thresholds: with ``multi_label`` the probability above which a row gets a label: a number, or one for each
            label; ``auto`` for the best F1 on validation rows (see `choose_thresholds`), and one half until then.
        calibrate: whether to choose the temperature on the validation rows.
        temperature: divides the logits before they become probabilities; 1 if None.
        training: adapter, optimizer, scheduler, ...: see `AdapterTask`.
    """

    peft_task_type = "SEQ_CLS"

    def __init__(
        self,
        *,
        checkpoint: str,
        labels: Sequence[str],
        label_counts: Sequence[int] | None = None,
        num_rows: int | None = None,
        multi_label: bool = False,
        text_columns: Sequence[str] = ("text",),
        max_length: int = 128,
        pooling: PoolingChoice = "model",
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        thresholds: float | Sequence[float] | Literal["auto"] = "auto",
        calibrate: bool = False,
        temperature: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.checkpoint, self.labels, self.multi_label = checkpoint, list(labels), multi_label
        self.text_columns, self.max_length, self.label_smoothing = list(text_columns), max_length, label_smoothing
        check_smoothing(label_smoothing)
        check_pooling(pooling)
        check_thresholds(thresholds, self.labels, multi_label=multi_label)
        self.label_counts, self.num_rows = label_counts, num_rows
        self.thresholds, self.calibrate = thresholds, calibrate
        self.temperature = check_temperature(temperature)
        self.pooling: PoolingChoice = pooling
        weights = weights_of_labels(class_weights, self.labels, label_counts)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None

    def build_model(self) -> PreTrainedModel:
        model = self._load()
        self.tokenizer = load_tokenizer(self.checkpoint)
        pad_(self.tokenizer, self.checkpoint)
        agree_on_padding_(model, self.tokenizer)
        check_vocabulary(model, self.tokenizer, self.checkpoint)
        left = self.tokenizer.padding_side == "left"
        self._by_length = depends_on_padding(model, padding=self.tokenizer.pad_token_id or 0, on_the_left=left)
        return model

    def _load(self) -> PreTrainedModel:
        if self.pooling == "auto":
            self.pooling = find_pooling(self.checkpoint) or "model"
        kind = "multi_label_classification" if self.multi_label else "single_label_classification"
        if self.pooling != "model":
            return load_pooled(
                self.checkpoint,
                pooling=self.pooling,
                labels=self.labels,
                max_length=self.max_length,
                problem_type=kind,
            )
        return load_classifier(AutoModelForSequenceClassification, self.checkpoint, self.labels, problem_type=kind)

    def head(self, model: nn.Module) -> list[nn.Module]:
        return new_head(model, self.fresh(model))

    def constant_answer(self) -> Tensor | None:
        """Of several labels, how often each occurs; the rare ones of many labels would else be told apart late."""
        if not self.multi_label or self.label_counts is None or self.num_rows is None:
            return None
        # half a row with the label and half without keep the logits finite
        odds = torch.tensor([(count + 0.5) / (self.num_rows - count + 0.5) for count in self.label_counts])
        return odds.log() if self.class_weights is None else (odds * self.class_weights.cpu().clamp(min=1e-6)).log()

    def tiny_batch(self) -> dict[str, Tensor]:
        texts = [["a", "b c"]] * len(self.text_columns)
        encoded = tokenise(self.tokenizer, *texts, padding=True, return_tensors="pt")
        labels = torch.zeros(2, len(self.labels)) if self.multi_label else torch.zeros(2, dtype=torch.long)
        return {**encoded, "labels": labels}

    def found_arguments(self) -> dict[str, Any]:
        return {"pooling": self.pooling}

    def metrics(self) -> MetricCollection:
        return classification_metrics(len(self.labels), multi_label=self.multi_label)

    def step(self, batch: Mapping[str, Tensor]) -> Step:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        labels = batch["labels"]
        logits = self.model(**inputs).logits  # (batch, labels)
        if self.multi_label:
            smoothed = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.class_weights)
            return Step(loss, self._around_half(logits), labels.long())
        share, predictions = self.label_smoothing, logits / self.temperature
        if self.class_weights is None:
            return Step(F.cross_entropy(logits, labels, label_smoothing=share), predictions, labels)
        weight = self.class_weights[labels].sum()
        loss = F.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=share, reduction="sum")
        # a batch whose rows have no weight has a loss of 0
        return Step(loss / weight.clamp(min=1e-12), predictions, labels, weight)

    def answers(self, batch: Mapping[str, Tensor], predictions: Tensor, targets: Tensor) -> Answers:
        return answers_of_labels(predictions, targets, self.labels)

    def settle(self, validated: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """The temperature if ``calibrate`` is set, and for multi-label rows the thresholds if they are ``auto``."""
        chooses = self.multi_label and self.thresholds == "auto"
        if not (chooses or self.calibrate):
            return {}
        predictions, targets = validated()
        scaled = predictions.logit(eps=1e-6) + self._offsets(predictions) if self.multi_label else predictions
        logits = self.temperature * scaled
        temperature = fit_temperature(logits, targets) if self.calibrate else self.temperature
        found: dict[str, Any] = {"temperature": temperature} if self.calibrate else {}
        if chooses:
            found["thresholds"] = choose_thresholds((logits / temperature).sigmoid(), targets)
        return found

    def _around_half(self, logits: Tensor) -> Tensor:
        """Probabilities shifted so that thresholds are at one half, as metrics expect."""
        return (logits.float() / self.temperature - self._offsets(logits)).sigmoid()

    def _offsets(self, like: Tensor) -> Tensor:
        """The logits of the thresholds, () or (labels,), on the device of ``like``."""
        thresholds = 0.5 if self.thresholds == "auto" else self.thresholds
        return torch.as_tensor(thresholds, dtype=torch.float32, device=like.device).logit()

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Label and probabilities of texts, of (text, text) pairs, or of records with the data's text columns."""
        records = [self._record(given) for given in inputs]
        encoded = tokenise(
            self.tokenizer,
            *([record[column] for record in records] for column in self.text_columns),
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        )
        logits = self._logits(encoded.to(self.device)).float()  # (batch, labels)
        scaled = logits / self.temperature
        probabilities = (scaled.sigmoid() if self.multi_label else scaled.softmax(-1)).tolist()
        chosen = (self._around_half(logits) > 0.5).tolist()
        return [
            {**record, **self._verdict(dict(zip(self.labels, row, strict=True)), above)}
            for record, row, above in zip(records, probabilities, chosen, strict=True)
        ]

    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        if not self._by_length:
            return self.model(**batch).logits  # type: ignore[no-any-return]
        parts = [(rows, self.model(**part).logits) for rows, part in each_length(batch)]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[order]

    def _verdict(self, probabilities: dict[str, float], chosen: Sequence[bool]) -> dict[str, Any]:
        if self.multi_label:
            label: Any = [name for name, is_chosen in zip(self.labels, chosen, strict=True) if is_chosen]
        else:
            label = max(probabilities, key=probabilities.__getitem__)
        return {"label": label, "probabilities": {name: round(value, 6) for name, value in probabilities.items()}}

    def _record(self, given: Any) -> dict[str, str]:
        if isinstance(given, str):
            given = (given,)
        if isinstance(given, Mapping):
            given = [given.get(column) for column in self.text_columns]
        values = list(given) if isinstance(given, Sequence) else []
        if len(values) != len(self.text_columns) or not all(isinstance(value, str) for value in values):
            wanted = " and ".join(map(repr, self.text_columns))
            raise InputError("E-INPUT", f"{given!r}: give a text for {wanted}, or a record with these keys")
        return dict(zip(self.text_columns, values, strict=True))
