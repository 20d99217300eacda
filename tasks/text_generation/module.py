"""Causal language modelling: plain text, answers to prompts, and chat."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForCausalLM, PreTrainedModel

from loralight import AdapterTask, Step
from loralight.acceleration import TokenScorer, line_of
from loralight.data import form_of
from loralight.errors import InputError
from loralight.kernels import TokenScores
from loralight.logs import logger, show, telling
from loralight.models import check_vocabulary, is_sharded, load_model, load_tokenizer
from loralight.training import keep_texts

from . import samples
from .data import IGNORED, TextGenerationData
from .generation import Decoding, Writer
from .metrics import text_metrics, text_scores, token_metrics

_AT_A_TIME = 16  # prompts that are answered for text metrics


class TextGeneration(AdapterTask):
    """A causal language model, trained on the tokens that the data marks; it continues texts.

    Batch: input_ids, targets (batch, tokens), with target -100 for tokens without a loss; position_ids (batch, tokens)
    if a row has several documents. Padding is on the right and needs no mask, since earlier tokens do not attend to it.

    Args:
        checkpoint: a model that ``AutoModelForCausalLM`` loads.
        columns: the columns of the data's form: ``messages``; ``prompt`` and ``completion``; or ``text``.
        join: the text between a prompt and its completion.
        chat_template: a template for chats, instead of the tokenizer's.
        samples: number of validation prompts that are continued greedily before training and at each validation. The
            continuations are written to ``samples.jsonl`` in the run's folder and shown side by side at the end; 0 for
            none.
        sample_tokens: most tokens of each continuation.
        text_metrics: metrics of generated texts against the data's: ``bleu``, ``rouge``, ``chrf``.
        text_metrics_rows: number of distinct prompts of a split that are answered for text metrics.
        text_metrics_tokens: most tokens of each answer.
        training: adapter, optimizer, scheduler, ...: see `AdapterTask`.
    """

    peft_task_type = "CAUSAL_LM"

    model: PreTrainedModel

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, str] = MappingProxyType({"text": "text"}),
        join: str = "\n",
        chat_template: str | None = None,
        samples: int = 3,
        sample_tokens: int = 64,
        text_metrics: Sequence[str] = (),
        text_metrics_rows: int = 100,
        text_metrics_tokens: int = 128,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.checkpoint, self.columns, self.join, self.chat_template = checkpoint, dict(columns), join, chat_template
        self.num_samples, self.sample_tokens = samples, sample_tokens
        self.text_metrics = list(text_metrics)
        self.num_text_rows, self.text_tokens = text_metrics_rows, text_metrics_tokens
        _check_text_metrics(self.text_metrics, self.columns)
        _check_counts(samples=(samples, 0), sample_tokens=(sample_tokens, 1))
        _check_counts(text_metrics_rows=(text_metrics_rows, 1), text_metrics_tokens=(text_metrics_tokens, 1))
        self._scores_of = TokenScorer()

    def build_model(self) -> PreTrainedModel:
        model = load_model(AutoModelForCausalLM, self.checkpoint)
        self.tokenizer = load_tokenizer(self.checkpoint)
        check_vocabulary(model, self.tokenizer, self.checkpoint)
        self.form = form_of(self.tokenizer, self.columns, join=self.join, template=self.chat_template)
        return model

    def save_pretrained(self, folder: Path) -> None:
        """Save the model with the end tokens of predictions, so that other programs end a text at the same place."""
        before = self.model.generation_config.eos_token_id
        self.model.generation_config.eos_token_id = self._writer().ends
        super().save_pretrained(folder)
        self.model.generation_config.eos_token_id = before

    def tiny_batch(self) -> dict[str, Tensor]:
        ids = torch.arange(14).view(2, 7) % len(self.tokenizer)
        return {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}

    def metrics(self) -> MetricCollection:
        return token_metrics()

    def step(self, batch: Mapping[str, Tensor]) -> Step:
        line = line_of(self.model, batch["position_ids"]) if "position_ids" in batch else None
        if line is not None:
            batch = {name: line.line_up(tensor) for name, tensor in batch.items()}
        inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
        learnt = batch["targets"] != IGNORED  # (batch, tokens)
        targets = batch["targets"][learnt]  # (learnt,)
        with nullcontext() if line is None else line.attended():
            scores = self._scores_of(self.model, inputs, learnt, targets)
        if line is not None:  # in the order of the rows
            order = line.places[learnt.squeeze(0)].argsort()
            scores = TokenScores(*(part[order] for part in scores))
        return Step(scores.losses.sum() / max(len(targets), 1), scores.losses.detach(), scores.hits)

    def predict_batch(
        self,
        inputs: Sequence[Any],
        *,
        max_new_tokens: int = Decoding.max_new_tokens,
        temperature: float = Decoding.temperature,
        top_p: float = Decoding.top_p,
        top_k: int = Decoding.top_k,
        repetition_penalty: float = Decoding.repetition_penalty,
        stop: Sequence[str] = Decoding.stop,
        seed: int = Decoding.seed,
    ) -> list[dict[str, Any]]:
        """The continuation of each input, and why it ends (``stop`` or ``length``); for the options see `Decoding`.

        An input is a text, or a record with the data's column of texts, prompts or messages. A model for chats also
        takes a list of messages, and a text as the user's turn.
        """
        decoding = Decoding(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )
        records = [self.form.record(given) for given in inputs]
        written = self._writer().write([self.form.prompt(record) for record in records], decoding)
        return [
            {**record, "completion": text, "finish": finish}
            for record, (text, finish) in zip(records, written, strict=True)
        ]

    def stream(self, given: Any, *args: Any, **options: Any) -> Iterator[str]:
        """The answer of `predict_batch` to one input, in pieces; the options are the same."""
        decoding = Decoding(**options)
        with self.evaluating():
            yield from self._writer().stream(self.form.prompt(self.form.record(given)), decoding)

    def _writer(self) -> Writer:
        return Writer(self.model, self.tokenizer, self.form.ends(), self.form.opening())

    def on_train_start(self) -> None:
        """Measure the pretrained model, which the adapter does not change before the first step."""
        if self._keeps_samples() and self.global_step == 0:
            logger.info("before training: measures the pretrained model on the validation rows, and writes samples")
            self._note(self._scores_of_validation())

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        scores = self._log_text_scores("validation")
        if not self._keeps_samples():
            return
        scores = {**_floats(self.scores["validation"]), **scores}
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._note(scores)
        elif self.global_step:  # after training, with the final weights
            self._show_before_and_after(scores)

    def on_test_epoch_end(self) -> None:
        self._log_text_scores("test")

    @torch.inference_mode()
    def _scores_of_validation(self) -> dict[str, float]:
        """The metrics of a validation before training; Lightning's own check then uses only two batches."""
        scores = token_metrics().to(self.device)
        loader = self._data().val_dataloader()
        total = int(min(self.trainer.num_val_batches, default=0))
        with self.evaluating(), self.trainer.precision_plugin.forward_context():
            for batch in telling(islice(loader, total), "validation batches before training", total):
                step = self.step(self.trainer.strategy.batch_to_device(batch))
                scores.update(step.predictions, step.targets)
        return {**_floats(scores), **self._text_scores("validation")}

    def _note(self, scores: Mapping[str, float]) -> None:
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            samples.append(folder, step=self.global_step, scores=scores, samples=self._samples())

    def _show_before_and_after(self, scores: Mapping[str, float]) -> None:
        lines = samples.read(Path(self.trainer.default_root_dir))
        if self.trainer.is_global_zero and lines and lines[0]["step"] == 0:
            final = self._samples()
            show(samples.samples_table(lines[0]["samples"], final))
            names = {"prompt": "input", "written": "given", "reference": "right"}
            kept = [{names[key]: text for key, text in sample.items()} for sample in final]
            keep_texts(self.trainer, "validation", kept)
            show(samples.scores_table(lines[0]["scores"], scores))

    def _samples(self) -> list[dict[str, str]]:
        prompts = self._data().prompts("validation", self.num_samples)
        answers = self.predict([record for record, _ in prompts], max_new_tokens=self.sample_tokens)
        return [
            {"prompt": self.form.shown(record), "written": answer["completion"], "reference": references[0]}
            for (record, references), answer in zip(prompts, answers, strict=True)
        ]

    def _log_text_scores(self, split: str) -> dict[str, float]:
        scores = self._text_scores(split)
        # the same on all ranks already
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()}, sync_dist=True)
        return scores

    def _text_scores(self, split: str) -> dict[str, float]:
        """Scores of generated texts; each rank generates its share, or all if it needs the others for each token."""
        if not self.text_metrics:
            return {}
        metrics = {name: metric.to(self.device) for name, metric in text_metrics(self.text_metrics).items()}
        share, everything = slice(self.trainer.global_rank, None, self.trainer.world_size), slice(None)
        written, counted = (everything, share) if is_sharded(self.model) else (share, everything)
        prompts = self._data().prompts(split, self.num_text_rows)[written]
        parts = [[record for record, _ in prompts[at : at + _AT_A_TIME]] for at in range(0, len(prompts), _AT_A_TIME)]
        answers = [
            answer
            for part in telling(parts, f"answers for {', '.join(metrics)}, {_AT_A_TIME} prompts at a time", len(parts))
            for answer in self.predict(part, max_new_tokens=self.text_tokens)
        ]
        texts = [answer["completion"].strip() for answer in answers[counted]]
        references = [found for _, found in prompts[counted]]
        for metric in metrics.values():
            metric.update(texts, references)
        return text_scores(metrics)

    def _keeps_samples(self) -> bool:
        is_ours = isinstance(self.trainer.datamodule, TextGenerationData)  # type: ignore[attr-defined]
        return self.num_samples > 0 and is_ours and not is_sharded(self.model)  # which one process cannot compute

    def _data(self) -> TextGenerationData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextGenerationData)
        return data


def _check_text_metrics(names: Sequence[str], columns: Mapping[str, str]) -> None:
    text_metrics(names)
    if names and "text" in columns:
        raise InputError(
            "E-METRIC",
            f"task.text_metrics={list(names)} compares answers with the data's; plain texts have none. Give data with "
            "prompts and completions, or chats",
        )


def _check_counts(**given: tuple[int, int]) -> None:
    """Raise ``E-SAMPLES`` unless each number is at least its given minimum."""
    for name, (count, least) in given.items():
        if count < least:
            raise InputError("E-SAMPLES", f"task.{name}={count}: give {least} or more")


def _floats(scores: Any) -> dict[str, float]:
    return {name.rpartition("/")[2]: float(value) for name, value in scores.compute().items()}
