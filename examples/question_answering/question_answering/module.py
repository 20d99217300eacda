"""The words of a text that answer a question, by an encoder such as BERT."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.errors import InputError
from loralight.models import load_model, load_tokenizer, new_head
from loralight.training import Answers

from .encoding import encode, padded
from .metrics import ExactSpans, SpanF1


class QuestionAnswering(AdapterTask):
    """Scores for each token of the text as the first and last token of the answer (Devlin et al., 2019).

    Batch: input_ids, attention_mask, allowed (batch, tokens); labels (batch, 2): first and last token.

    Args:
        longest_answer: most tokens of an answer.
    """

    peft_task_type = "QUESTION_ANS"

    def __init__(self, *, checkpoint: str, max_length: int = 256, longest_answer: int = 30, **training: Any) -> None:
        super().__init__(**training)
        if longest_answer < 1:
            raise InputError("E-CONFIG", f"task.longest_answer is {longest_answer}; give at least 1")
        self.checkpoint, self.max_length, self.longest_answer = checkpoint, max_length, longest_answer

    def build_model(self) -> PreTrainedModel:
        self.tokenizer = load_tokenizer(self.checkpoint)
        return load_model(AutoModelForQuestionAnswering, self.checkpoint)

    def head(self, model: nn.Module) -> list[nn.Module]:
        return new_head(model, self.fresh(model))

    def metrics(self) -> MetricCollection:
        return MetricCollection({"exact": ExactSpans(), "f1": SpanF1()})

    def step(self, batch: dict[str, Tensor]) -> Step:
        first, last = self.log_probabilities(batch)
        loss = (F.nll_loss(first, batch["labels"][:, 0]) + F.nll_loss(last, batch["labels"][:, 1])) / 2
        return Step(loss, self.likeliest(first, last)[0], batch["labels"])

    def answers(self, batch: Mapping[str, Tensor], predictions: Tensor, targets: Tensor) -> Answers:
        def texts(spans: Tensor) -> list[str]:
            rows = zip(batch["input_ids"].tolist(), spans.tolist(), strict=True)
            found = [ids[first : last + 1] for ids, (first, last) in rows]
            return self.tokenizer.batch_decode(found, skip_special_tokens=True)

        return Answers("other", texts(predictions), texts(targets))

    def log_probabilities(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log probabilities of each token as the first and as the last of the answer, (batch, tokens) each."""
        scores = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        forbidden = batch["allowed"] == 0
        first, last = (one.float().masked_fill(forbidden, -1e4) for one in (scores.start_logits, scores.end_logits))
        return first.log_softmax(-1), last.log_softmax(-1)

    def likeliest(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely answers, (batch, 2), and their log probabilities, (batch,)."""
        width = first.shape[1]
        together = first.unsqueeze(2) + last.unsqueeze(1)  # (batch, first, last)
        possible = torch.ones(width, width, dtype=torch.bool, device=first.device)
        possible = possible.triu().tril(self.longest_answer - 1)
        best, place = together.masked_fill(~possible, -torch.inf).flatten(1).max(1)
        return torch.stack([place // width, place % width], 1), best

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to records with ``question`` and ``context``; an empty text if there is no answer."""
        for given in inputs:
            if not isinstance(given, Mapping) or not {"question", "context"} <= given.keys():
                raise InputError("E-INPUT", f"{given!r:.80}: give a record with the texts question and context")
        questions, texts = ([given[key] for given in inputs] for key in ("question", "context"))
        encoded = encode(self.tokenizer, questions, texts, self.max_length)
        batch = padded(encoded["input_ids"], encoded["allowed"], self.tokenizer.pad_token_id or 0)
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        found, scores = self.likeliest(*self.log_probabilities(batch))
        places = [
            (offsets[first][0], offsets[last][1])
            for offsets, (first, last) in zip(encoded["offsets"], found.tolist(), strict=True)
        ]
        return [
            {"question": question, "answer": text[start:end], "start": start, "score": round(score, 4)}
            for question, text, (start, end), score in zip(questions, texts, places, scores.exp().tolist(), strict=True)
        ]
