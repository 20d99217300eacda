"""Text generation: greedy or sampled, until an end."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loralight.data import seed_of
from loralight.errors import InputError
from loralight.logs import logger

_SEES_PADDING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()  # models that were tested


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings for the choice of the next token and the end of the text.

    Args:
        max_new_tokens: most tokens to generate.
        temperature: 0 takes the most likely token; else logits are divided by it and a token is sampled.
        top_p: sample from the most likely tokens whose probabilities sum to this.
        top_k: sample from this many most likely tokens; from all if 0.
        repetition_penalty: above 1, tokens that are already in the text become less likely (Keskar et al., 2019,
            https://arxiv.org/abs/1909.05858).
        stop: texts; the answer ends before the first occurrence of any of them.
        seed: seed of sampling, together with the prompt: a prompt gets the same answer in any batch.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "a number above 0, such as 1.2"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "a list of texts, none of them empty"),
        ):
            if not holds:
                raise InputError("E-OPTION", f"options.{name} is {getattr(self, name)!r}; give {wanted}")

    def processors(self, prompts: Sequence[Sequence[int]]) -> LogitsProcessorList:
        """The functions that turn logits into scores; the token with the highest score is taken."""
        if not self.temperature:
            return LogitsProcessorList()
        chosen: list[LogitsProcessor] = [TemperatureLogitsWarper(float(self.temperature))]
        chosen += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        chosen += [TopPLogitsWarper(float(self.top_p))] if self.top_p < 1 else []
        return LogitsProcessorList([*chosen, _Draw(prompts, self.seed)])


class Writer:
    """Continues prompts with a causal language model.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        ends: tokens that end a text, in addition to the model's own.
        opening: a text before each answer that is left out.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int], opening: str = ""
    ) -> None:
        self.model, self.tokenizer, self.opening = model, tokenizer, opening
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        self.ends = sorted({token for token in (tokenizer.eos_token_id, *own, *ends) if token is not None})
        self.longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def write(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[tuple[str, str]]:
        """The continuation of each prompt, and the reason for its end: ``stop`` or ``length``.

        Raises:
            InputError: a prompt leaves no room for another token, or has no tokens (``E-SEQ-LEN``, ``E-INPUT``).
        """
        groups: dict[tuple[int, int], list[int]] = {}
        is_mixed = len({len(prompt) for prompt in prompts}) > 1 and self._sees_padding()
        for number, prompt in enumerate(prompts):
            # the penalty would apply to padding too
            width = len(prompt) if decoding.repetition_penalty != 1 or is_mixed else 0
            groups.setdefault((self._room(prompt, decoding), width), []).append(number)
        answers: dict[int, tuple[str, str]] = {}
        for (room, _), numbers in groups.items():
            made = self._generate([prompts[number] for number in numbers], room, decoding)
            answers |= {
                number: self._ended(ids, decoding.stop) for number, ids in zip(numbers, made.tolist(), strict=True)
            }
        return [answers[number] for number in range(len(prompts))]

    def stream(self, prompt: list[int], decoding: Decoding) -> Iterator[str]:
        """The continuation of one prompt in pieces, as they are generated."""
        room = self._room(prompt, decoding)
        pieces = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        unwanted, failures = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                with torch.inference_mode():
                    self._generate([prompt], room, decoding, streamer=pieces, unwanted=unwanted)
            except BaseException as error:
                failures.append(error)
            finally:
                pieces.end()  # type: ignore[no-untyped-call]

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from _until(_without(self.opening, pieces), decoding.stop)
        finally:
            unwanted.set()  # the caller may stop early
            thread.join()
        if failures:
            raise failures[0]

    def _room(self, prompt: list[int], decoding: Decoding) -> int:
        if not prompt:
            raise InputError("E-INPUT", "there is nothing to continue: the prompt has no tokens")
        if self.longest is None:
            return decoding.max_new_tokens
        if len(prompt) >= self.longest:
            start = self.tokenizer.decode(prompt[:20])
            raise InputError(
                "E-SEQ-LEN",
                f"the prompt {start!r}... has {len(prompt)} tokens; the model takes {self.longest} with its answer",
            )
        return min(decoding.max_new_tokens, self.longest - len(prompt))  # type: ignore[no-any-return]

    def _generate(
        self,
        prompts: Sequence[list[int]],
        room: int,
        decoding: Decoding,
        *,
        streamer: TextIteratorStreamer | None = None,
        unwanted: threading.Event | None = None,
    ) -> Tensor:
        """New tokens, (prompts, up to ``room``)."""
        width = max(map(len, prompts))
        written = self.model.generate(  # type: ignore[operator]
            **self._padded(prompts),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                repetition_penalty=float(decoding.repetition_penalty),
                eos_token_id=self.ends,
                pad_token_id=self.ends[0],
            ),
            logits_processor=decoding.processors(prompts),
            stopping_criteria=StoppingCriteriaList([_Said(self.tokenizer, decoding.stop, width, unwanted)]),
            streamer=streamer,
        )
        assert isinstance(written, Tensor)
        return written[:, width:]

    @torch.no_grad()
    def _sees_padding(self) -> bool:
        """Whether the token after a prompt depends on padding; each model is tested once, on two prompts."""
        if self.model not in _SEES_PADDING:
            rows = [[number % len(self.tokenizer) for number in numbers] for numbers in (range(5, 11), range(7, 10))]
            together = self._next_logits(rows)
            alone = torch.cat([self._next_logits([row]) for row in rows])
            tolerance = max(1e-4, 64 * torch.finfo(alone.dtype).eps) * alone.abs().max()
            _SEES_PADDING[self.model] = not bool(((together - alone).abs() <= tolerance).all())
            if _SEES_PADDING[self.model]:
                name = type(self.model).__name__
                logger.info(
                    "what %s writes depends on the padding in its batch: prompts of one length go together", name
                )
        return _SEES_PADDING[self.model]

    def _next_logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """The logits of the first generated token, (prompts, vocabulary)."""
        given = self._padded(prompts)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=1,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.ends[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        written = self.model.generate(**given, generation_config=settings)  # type: ignore[operator]
        logits: Tensor = written.logits[0]
        return logits

    def _padded(self, prompts: Sequence[list[int]]) -> dict[str, Tensor]:
        """Prompts with padding on the left."""
        width, pad, device = max(map(len, prompts)), self.ends[0], self.model.device
        return {
            "input_ids": torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device),
            "attention_mask": torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device
            ),
        }

    def _ended(self, ids: list[int], stop: Sequence[str]) -> tuple[str, str]:
        end = next((at for at, token in enumerate(ids) if token in self.ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        assert isinstance(text, str)
        text = text.removeprefix(self.opening)
        said = [at for phrase in stop if (at := text.find(phrase)) >= 0]
        return text[: min(said, default=len(text))], "length" if end is None and not said else "stop"


class _Draw(LogitsProcessor):
    """Adds Gumbel noise, so that the highest score is a sample from the softmax; each row has its own generator."""

    def __init__(self, prompts: Sequence[Sequence[int]], seed: int) -> None:
        seeds = (seed_of(seed, *prompt) for prompt in prompts)
        self.generators = [torch.Generator().manual_seed(number) for number in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores.float() - torch.stack(drawn).log().to(scores.device)


class _Said(StoppingCriteria):
    """Ends a row that contains a stop text, and all rows once the text is ``unwanted``."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str],
        width: int,
        unwanted: threading.Event | None,
    ) -> None:
        self.tokenizer, self.stop, self.width, self.unwanted = tokenizer, stop, width, unwanted

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ends = [self.unwanted is not None and self.unwanted.is_set()] * len(input_ids)
        if self.stop:
            texts = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
            ends = [end or any(phrase in text for phrase in self.stop) for end, text in zip(ends, texts, strict=True)]
        return torch.tensor(ends, device=input_ids.device)


def _without(opening: str, pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without ``opening``, which is held back while they may begin with it."""
    pieces, start = iter(pieces), ""
    while len(start) < len(opening) and opening.startswith(start) and (piece := next(pieces, None)) is not None:
        start += piece
    yield start.removeprefix(opening)
    yield from pieces


def _until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop text; characters that may begin a stop text are held back until it is clear."""
    held = max(map(len, stop), default=1) - 1
    text, shown = "", 0
    for piece in pieces:
        text += piece
        if said := [at for phrase in stop if (at := text.find(phrase)) >= 0]:
            yield text[shown : min(said)]
            return
        if len(text) - held > shown:
            yield text[shown : len(text) - held]
            shown = len(text) - held
    if text[shown:]:
        yield text[shown:]
