"""Plain texts, and prompts with completions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from loralight.data.columns import missing_hint
from loralight.data.forms.form import Document, Form
from loralight.errors import InputError

_SHOWN = 300  # characters


class PlainText(Form):
    """A text; all its tokens and its end are learnt."""

    roles = ("text",)
    is_divisible = True

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[list[Document]]:
        texts = [
            self._text(value, "text", place) for value, place in zip(rows[self.columns["text"]], places, strict=True)
        ]
        for text, ids in zip(texts, self._opened(texts), strict=True):
            closed = [*ids, self.tokenizer.eos_token_id] if text.strip() else []
            yield [(closed, [True] * len(closed))]

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        return self._opened([record[self.columns["text"]]])[0]

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The opening of a text, at most half of it, and its continuation."""
        text: str = row[self.columns["text"]]
        half = text[: min(len(text) // 2, _SHOWN)]
        cut = len(half.rsplit(maxsplit=1)[0]) if len(half.split()) > 1 else len(half)
        return {self.columns["text"]: text[:cut]}, text[cut : cut + _SHOWN]


class PromptCompletion(Form):
    """A prompt and its completion; the completion and its end are learnt.

    Args:
        join: the text between prompt and completion; it belongs to the prompt.
    """

    roles = ("prompt", "completion")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, join: str) -> None:
        super().__init__(tokenizer, columns)
        self.join = join

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[list[Document]]:
        texts = {
            role: [self._text(value, role, place) for value, place in zip(rows[column], places, strict=True)]
            for role, column in self.columns.items()
        }
        for completion, place in zip(texts["completion"], places, strict=True):
            if not completion.strip():
                column = self.columns["completion"]
                hint = missing_hint(completion, column)
                raise InputError("E-TEXT", f"{place}, column {column!r}: the completion is empty{hint}")
        prompts = self._opened([prompt + self.join for prompt in texts["prompt"]])
        completions = self.tokenizer(texts["completion"], add_special_tokens=False)["input_ids"]
        for prompt, completion in zip(prompts, completions, strict=True):
            closed = [*completion, self.tokenizer.eos_token_id]
            yield [(prompt + closed, [False] * len(prompt) + [True] * len(closed))]

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        return self._opened([record[self.columns["prompt"]] + self.join])[0]

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        column = self.columns["prompt"]
        return {column: row[column]}, row[self.columns["completion"]]
