"""Instructions with answers, as Alpaca's data has them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from loralight.data.forms.chats import Chat
from loralight.data.forms.form import Document, Form
from loralight.data.forms.texts import PromptCompletion


class Instruction(Form):
    """An instruction, perhaps an input to it, and the answer, which is learnt; a row without an answer teaches nothing.

    They are a chat of two turns if there is a chat template, and else a prompt with its completion. An input follows
    its instruction after an empty line.

    Args:
        join: the text between prompt and completion.
        template: a chat template (Jinja) in place of the tokenizer's.
    """

    roles = ("instruction", "output")
    optional = ("input",)

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, join: str, template: str | None
    ) -> None:
        super().__init__(tokenizer, columns)
        self._as_chat = template is not None or tokenizer.chat_template is not None
        self._inner: Form = (
            Chat(tokenizer, {"messages": "messages"}, template=template)
            if self._as_chat
            else PromptCompletion(tokenizer, {"prompt": "prompt", "completion": "completion"}, join=join)
        )

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[list[Document]]:
        records = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        for record, place in zip(records, places, strict=True):
            for role in self.roles:
                self._text(record[self.columns[role]], role, place)
        output = self.columns["output"]
        answered = [number for number, record in enumerate(records) if record[output].strip()]
        pairs = [(self._asked(records[number]), records[number][output]) for number in answered]
        encoded = self._inner.encode(self._of_inner(pairs), [places[number] for number in answered])
        found = dict(zip(answered, encoded, strict=True))
        yield from (found.get(number, []) for number in range(len(records)))

    def record(self, given: Any) -> dict[str, Any]:
        asked = [self.columns["instruction"], *filter(None, [self.columns.get("input")])]
        if not isinstance(given, Mapping) or not isinstance(given.get(asked[0]), str):
            return self._inner.record(given)
        return {name: given[name] for name in asked if isinstance(given.get(name), str) and given[name]}

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        is_ours = self.columns["instruction"] in record
        return self._inner.prompt(self._inner.record(self._asked(record)) if is_ours else record)

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        answer: str = row[self.columns["output"]]
        return (self.record(row), answer) if answer.strip() else None

    def shown(self, record: Mapping[str, Any]) -> str:
        return self._asked(record) if self.columns["instruction"] in record else self._inner.shown(record)

    def opening(self) -> str:
        return self._inner.opening()

    def ends(self) -> set[int]:
        return self._inner.ends()

    def _asked(self, record: Mapping[str, Any]) -> str:
        given = record.get(self.columns.get("input", ""))
        instruction: str = record[self.columns["instruction"]]
        return f"{instruction}\n\n{given}" if given else instruction

    def _of_inner(self, pairs: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
        if not self._as_chat:
            return {"prompt": [asked for asked, _ in pairs], "completion": [answer for _, answer in pairs]}
        return {
            "messages": [
                [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
                for asked, answer in pairs
            ]
        }
