"""A number for two texts, by an encoder such as BERT."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.errors import InputError
from loralight.models import load_model, load_tokenizer, new_head, tokenise


class SentencePairs(AdapterTask):
    """A head of one output on an encoder; it learns how far a pair is from the mean score."""

    def __init__(self, *, checkpoint: str, mean_score: float = 0.0, max_length: int = 128, **training: Any) -> None:
        super().__init__(**training)  # adapter, optimizer, ...: passed on unread
        self.checkpoint, self.mean_score, self.max_length = checkpoint, mean_score, max_length

    def build_model(self) -> PreTrainedModel:
        self.tokenizer = load_tokenizer(self.checkpoint)
        return load_model(AutoModelForSequenceClassification, self.checkpoint, num_labels=1)

    def head(self, model: nn.Module) -> list[nn.Module]:
        return new_head(model, self.fresh(model))  # trained in full, never adapted

    def metrics(self) -> MetricCollection:
        return MetricCollection({"pearson": PearsonCorrCoef(), "mse": MeanSquaredError()})

    def step(self, batch: dict[str, Tensor]) -> Step:
        scores = self.score({name: tensor for name, tensor in batch.items() if name != "labels"})
        return Step(F.mse_loss(scores, batch["labels"]), scores, batch["labels"])

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Scores of records with the texts ``first`` and ``second``."""
        for given in inputs:
            if not isinstance(given, Mapping) or not {"first", "second"} <= given.keys():
                raise InputError("E-INPUT", f"{given!r}: give a record with the texts first and second")
        texts = [[given[side] for given in inputs] for side in ("first", "second")]
        settings = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        encoded = tokenise(self.tokenizer, *texts, **settings)
        scores = self.score(encoded.to(self.device)).tolist()
        return [{**given, "score": round(score, 4)} for given, score in zip(inputs, scores, strict=True)]

    def score(self, inputs: Mapping[str, Tensor]) -> Tensor:
        scores: Tensor = self.model(**inputs).logits[:, 0] + self.mean_score
        return scores  # (batch,)
