"""Texts from texts, such as a summary, a translation or a rewritten date, by an encoder with a decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.errors import InputError
from loralight.models import load_model, load_tokenizer, tokenise
from loralight.training import Answers

from .metrics import Texts, Tokens


class SequenceToSequence(AdapterTask):
    """The loss of each token of the target, given the source and the tokens before it.

    Batch: input_ids, attention_mask (batch, tokens); labels (batch, tokens of the target), -100 for padding.

    Args:
        max_new_tokens: most tokens of the texts that are written in validation and test.
    """

    peft_task_type = "SEQ_2_SEQ_LM"

    def __init__(self, *, checkpoint: str, max_length: int = 128, max_new_tokens: int = 32, **training: Any) -> None:
        super().__init__(**training)
        self.checkpoint, self.max_length, self.max_new_tokens = checkpoint, max_length, max_new_tokens

    def build_model(self) -> PreTrainedModel:
        self.tokenizer = load_tokenizer(self.checkpoint)
        return load_model(AutoModelForSeq2SeqLM, self.checkpoint)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"token_accuracy": Tokens(), "exact": Texts()})

    def step(self, batch: dict[str, Tensor]) -> Step:
        labels = batch["labels"]
        counted = labels != -100
        logits = self.model(**batch).logits[counted]  # (tokens, vocabulary)
        loss, num_tokens = F.cross_entropy(logits, labels[counted]), counted.sum()
        step = Step(loss, logits.argmax(-1), labels[counted], num_tokens)
        if self.split == "train":
            return step
        wanted = self.texts(labels.masked_fill(~counted, self.tokenizer.pad_token_id))
        return step._replace(arguments={"written": self.written(batch, self.max_new_tokens), "wanted": wanted})

    def answers(
        self,
        batch: Any,
        predictions: Tensor,
        targets: Tensor,
        *,
        written: Sequence[str] = (),
        wanted: Sequence[str] = (),
    ) -> Answers:
        """The texts, which `step` gives its metrics too."""
        given, right = ([text.strip() for text in texts] for texts in (written, wanted))
        return Answers("other", given, right)

    @torch.no_grad()
    def written(self, batch: Mapping[str, Tensor], max_new_tokens: int) -> list[str]:
        """A text for each row, by greedy decoding."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.texts(self.model.generate(**given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1))

    def texts(self, tokens: Tensor) -> list[str]:
        """The texts of rows of tokens."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def predict_batch(self, inputs: Sequence[Any], *, max_new_tokens: int = 32) -> list[dict[str, Any]]:
        """A text for each source text.

        Args:
            inputs: texts, or records with a ``source``.
            max_new_tokens: most tokens of each text.
        """
        sources = [given.get("source") if isinstance(given, Mapping) else given for given in inputs]
        if odd := [given for given in sources if not isinstance(given, str)]:
            raise InputError("E-INPUT", f"{odd[0]!r:.80}: give texts, or records with the text source")
        settings = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        encoded = tokenise(self.tokenizer, sources, **settings).to(self.device)
        written = self.written(encoded, max_new_tokens)
        return [{"source": source, "written": text} for source, text in zip(sources, written, strict=True)]
