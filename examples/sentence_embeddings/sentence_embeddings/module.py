"""Embeddings of texts by an encoder, trained on pairs with the other pairs of a batch as negatives."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from loralight import AdapterTask, Step
from loralight.errors import InputError
from loralight.models import load_encoder, load_tokenizer, pool, tokenise
from loralight.training import gather_rows

from .metrics import RecallAtOne


class SentenceEmbeddings(AdapterTask):
    """A contrastive loss over the batches of all processes (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748).

    Batch: input_ids, attention_mask (2 * pairs, tokens): the first texts of all pairs, then the second.

    Args:
        temperature: divides the cosines; the lower it is, the more the most similar wrong texts count.
    """

    peft_task_type = "FEATURE_EXTRACTION"

    def __init__(self, *, checkpoint: str, temperature: float = 0.05, max_length: int = 64, **training: Any) -> None:
        super().__init__(**training)
        if temperature <= 0:
            raise InputError("E-CONFIG", f"task.temperature is {temperature}; give a number above 0, such as 0.05")
        self.checkpoint, self.temperature, self.max_length = checkpoint, temperature, max_length

    def build_model(self) -> PreTrainedModel:
        self.tokenizer = load_tokenizer(self.checkpoint)
        return load_encoder(self.checkpoint)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"recall_at_1": RecallAtOne()})

    def step(self, batch: dict[str, Tensor]) -> Step:
        first, second = self.embed(batch).chunk(2)  # (pairs, width) each
        candidates = gather_rows(second)  # of all processes
        scores = first @ candidates.rows.T / self.temperature
        right = candidates.start + torch.arange(len(first), device=scores.device)
        cosine = (first * second).sum(-1).mean()
        return Step(F.cross_entropy(scores, right), first, second, numbers={"cosine_of_pairs": cosine})

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """A vector of length 1 for each text, (texts, width)."""
        states = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return F.normalize(pool(states, inputs["attention_mask"], "mean"), dim=-1)

    def predict_batch(self, inputs: Sequence[Any], *, digits: int = 6) -> list[dict[str, Any]]:
        """The vector of each text.

        Args:
            inputs: texts.
            digits: digits after the decimal point.
        """
        if odd := [given for given in inputs if not isinstance(given, str)]:
            raise InputError("E-INPUT", f"{odd[0]!r}: give texts")
        settings = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        vectors = self.embed(tokenise(self.tokenizer, list(inputs), **settings).to(self.device)).tolist()
        rounded = [[round(value, digits) for value in vector] for vector in vectors]
        return [{"text": text, "vector": vector} for text, vector in zip(inputs, rounded, strict=True)]
