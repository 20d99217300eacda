"""The forms that rows come in (plain texts, prompts with completions, chats), and what of each is learnt."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from loralight.errors import InputError

Message = Mapping[str, str]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks in a chat template what the assistant says
_SPEAKER = re.compile(r"^(system|user|assistant):[ \t]*", re.IGNORECASE | re.MULTILINE)
_SHOWN = 300  # characters


class Form(ABC):
    """How a row becomes tokens, and which of them are learnt.

    Args:
        tokenizer: of the model.
        columns: where rows have what `roles` names.
    """

    roles: ClassVar[tuple[str, ...]]
    """The columns that rows of this form have."""

    is_divisible: ClassVar[bool] = False
    """Whether a row that is too long is cut into several, where others lose their end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str]) -> None:
        self.tokenizer, self.columns = tokenizer, {role: columns[role] for role in self.roles}
        if tokenizer.eos_token_id is None:
            raise InputError("E-TOKENIZER", "the model's tokenizer has no end-of-text token (eos_token)")

    @abstractmethod
    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[tuple[list[int], list[bool]]]:
        """Each row's tokens, and which of them are learnt.

        Args:
            rows: their columns.
            places: what to call each row in a message.

        Raises:
            InputError: a row cannot be learnt from (``E-TEXT``, ``E-CHAT``).
        """

    @abstractmethod
    def record(self, given: Any) -> dict[str, Any]:
        """What `TextGeneration.predict` is given, as a record with the columns that generation starts from.

        Raises:
            InputError: it is something else (``E-INPUT``).
        """

    @abstractmethod
    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        """The tokens that generation continues."""

    @abstractmethod
    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Of a row of data, a record as generation takes it and the text that follows it there."""

    @abstractmethod
    def shown(self, record: Mapping[str, Any]) -> str:
        """A record as people read it."""

    def ends(self) -> set[int]:
        """Tokens that end a text, beside the tokenizer's own."""
        return set()

    def _opened(self, texts: list[str]) -> list[list[int]]:
        """Tokens after the mark that opens a text for this model, if it has one."""
        found: list[list[int]] = self.tokenizer(texts)["input_ids"]
        return [ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids for ids in found]

    def _text(self, value: Any, role: str, place: str) -> str:
        if not isinstance(value, str):
            raise InputError("E-TEXT", f"{place}, column {self.columns[role]!r}: {value!r} is not a text")
        return value

    def _given(self, given: Any) -> dict[str, Any]:
        """``given`` as a record whose first column is a text."""
        column = self.columns[self.roles[0]]
        record = {column: given} if isinstance(given, str) else given
        if not isinstance(record, Mapping) or not isinstance(record.get(column), str):
            raise InputError("E-INPUT", f"{given!r}: give a text, or a record with a text under {column!r}")
        return {column: record[column]}


class PlainText(Form):
    """A text, every token of which is learnt, and that it ends."""

    roles = ("text",)
    is_divisible = True

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[tuple[list[int], list[bool]]]:
        texts = [
            self._text(value, "text", place) for value, place in zip(rows[self.columns["text"]], places, strict=True)
        ]
        for text, ids in zip(texts, self._opened(texts), strict=True):
            closed = [*ids, self.tokenizer.eos_token_id] if text.strip() else []
            yield closed, [True] * len(closed)

    def record(self, given: Any) -> dict[str, Any]:
        return self._given(given)

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        return self._opened([record[self.columns["text"]]])[0]

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The opening of a text, of half of it at most, and how it goes on."""
        text: str = row[self.columns["text"]]
        half = text[: min(len(text) // 2, _SHOWN)]
        cut = len(half.rsplit(maxsplit=1)[0]) if len(half.split()) > 1 else len(half)
        return {self.columns["text"]: text[:cut]}, text[cut : cut + _SHOWN]

    def shown(self, record: Mapping[str, Any]) -> str:
        return str(record[self.columns["text"]])


class PromptCompletion(Form):
    """A prompt and the completion that is learnt, and that it ends.

    Args:
        join: what stands between the two; it belongs to the prompt.
    """

    roles = ("prompt", "completion")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, join: str) -> None:
        super().__init__(tokenizer, columns)
        self.join = join

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[tuple[list[int], list[bool]]]:
        texts = {
            role: [self._text(value, role, place) for value, place in zip(rows[column], places, strict=True)]
            for role, column in self.columns.items()
        }
        for completion, place in zip(texts["completion"], places, strict=True):
            if not completion.strip():
                raise InputError("E-TEXT", f"{place}, column {self.columns['completion']!r}: the completion is empty")
        prompts = self._opened([prompt + self.join for prompt in texts["prompt"]])
        completions = self.tokenizer(texts["completion"], add_special_tokens=False)["input_ids"]
        for prompt, completion in zip(prompts, completions, strict=True):
            closed = [*completion, self.tokenizer.eos_token_id]
            yield prompt + closed, [False] * len(prompt) + [True] * len(closed)

    def record(self, given: Any) -> dict[str, Any]:
        return self._given(given)

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        return self._opened([record[self.columns["prompt"]] + self.join])[0]

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        column = self.columns["prompt"]
        return {column: row[column]}, row[self.columns["completion"]]

    def shown(self, record: Mapping[str, Any]) -> str:
        return str(record[self.columns["prompt"]])


class Chat(Form):
    """Messages in the tokenizer's chat template, of which the assistant's turns are learnt, and that they end.

    Messages are a list of {role, content}, or a transcript: a text whose turns begin with ``User:`` or ``Assistant:``
    on a line of their own.

    Args:
        template: a chat template (Jinja) in place of the tokenizer's.
    """

    roles = ("messages",)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, template: str | None) -> None:
        super().__init__(tokenizer, columns)
        if template is not None:
            tokenizer.chat_template = template
        if tokenizer.chat_template is None:
            raise InputError(
                "E-CHAT",
                "the model's tokenizer has no chat template, so there is no saying how it writes messages. Take a "
                "model that was trained on chats, or set data.chat_template to a template or a file with one",
            )

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[tuple[list[int], list[bool]]]:
        chats = []
        for value, place in zip(rows[self.columns["messages"]], places, strict=True):
            chat = _messages(value, f"{place}, column {self.columns['messages']!r}")
            if not any(message["role"] == "assistant" for message in chat):
                names = ", ".join(dict.fromkeys(message["role"] for message in chat)) or "none"
                raise InputError("E-CHAT", f"{place}: no turn of the assistant, only of: {names}")
            chats.append(chat)
        template = self.tokenizer.get_chat_template()
        if _GENERATION.search(template):
            for chat, place in zip(chats, places, strict=True):
                made = self._rendered(chat, place, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                yield made["input_ids"], [bool(learnt) for learnt in made["assistant_masks"]]
            return
        for chat, place in zip(chats, places, strict=True):
            yield self._by_prefixes(chat, place)

    def _by_prefixes(self, chat: list[Message], place: str) -> tuple[list[int], list[bool]]:
        """What each turn of the assistant adds to the chat up to it, as the template does not say what that is."""
        turns = [turn for turn, message in enumerate(chat) if message["role"] == "assistant"]
        texts = [self._rendered(chat, place)]
        for turn in turns:
            texts.append(self._rendered(chat[:turn], place, add_generation_prompt=True))
            texts.append(self._rendered(chat[: turn + 1], place))
        whole, *parts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # the template writes them
        learnt = [False] * len(whole)
        for before, after in zip(parts[::2], parts[1::2], strict=True):
            if whole[: len(after)] != after or after[: len(before)] != before:
                raise InputError(
                    "E-CHAT",
                    f"{place}: the chat template writes earlier turns otherwise once more have come, so there is no "
                    "saying which tokens are the assistant's. Set data.chat_template to one that marks them with "
                    "{% generation %}",
                )
            end = self._end_of_turn(after, len(before))
            learnt[len(before) : end] = [True] * (end - len(before))
        return whole, learnt

    def _end_of_turn(self, ids: list[int], start: int) -> int:
        """Just behind a turn's last special token: the line break that may follow is written by nobody."""
        special = set(self.tokenizer.all_special_ids)
        return next((at + 1 for at in range(len(ids) - 1, start - 1, -1) if ids[at] in special), len(ids))

    def _rendered(self, chat: Sequence[Message], place: str, **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template([dict(turn) for turn in chat], **{"tokenize": False, **options})
        except (TemplateError, ValueError, TypeError) as error:
            raise InputError("E-CHAT", f"{place}: the chat template refuses this chat: {error}") from error

    def record(self, given: Any) -> dict[str, Any]:
        """A text is what the user says; a chat that ends with an answer is taken up to it."""
        column = self.columns["messages"]
        value = given.get(column) if isinstance(given, Mapping) and "role" not in given else given
        if isinstance(value, str) and value is given:
            value = [{"role": "user", "content": value}]
        try:
            chat = _messages(value, f"{given!r}")
        except InputError as error:
            message = f"give a text, a list of messages, or a record with {column!r}: {error}"
            raise InputError("E-INPUT", message) from error
        if chat[-1]["role"] == "assistant":
            chat = chat[:-1]
        if not chat:
            raise InputError("E-INPUT", f"{given!r}: there is nothing to answer")
        return {column: [dict(message) for message in chat]}

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        chat = record[self.columns["messages"]]
        text = self._rendered(chat, f"{chat!r}", add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        chat = _messages(row[self.columns["messages"]], "a row")
        last = max(turn for turn, message in enumerate(chat) if message["role"] == "assistant")
        return self.record({self.columns["messages"]: chat[: last + 1]}), chat[last]["content"]

    def shown(self, record: Mapping[str, Any]) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in record[self.columns["messages"]])

    def ends(self) -> set[int]:
        """The special token that the template puts behind an answer: not every model's own end of text."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        before = self.prompt({self.columns["messages"]: chat[:1]})
        after: list[int] = self.tokenizer(self._rendered(chat, "a test"), add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return set([token for token in after[len(before) :] if token in special][:1])


def form_of(
    tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, join: str = "\n", template: str | None = None
) -> Form:
    """The form whose columns these are."""
    if "messages" in columns:
        return Chat(tokenizer, columns, template=template)
    return PromptCompletion(tokenizer, columns, join=join) if "prompt" in columns else PlainText(tokenizer, columns)


def read_template(given: str | None) -> str | None:
    """A chat template, or what the file of that name holds.

    Raises:
        InputError: it is neither (``E-CHAT``).
    """
    if given is None or "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"data.chat_template={given}: no template, and not a file with one: {error}"
        raise InputError("E-CHAT", message) from error


def _messages(value: Any, place: str) -> list[Message]:
    """The messages in a cell.

    Raises:
        InputError: it has none (``E-CHAT``).
    """
    chat = _transcript(value) if isinstance(value, str) else value
    if not isinstance(chat, Sequence) or not chat:
        raise InputError("E-CHAT", f"{place}: {str(value)[:200]!r} is no list of messages, nor a transcript of turns")
    for message in chat:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError("E-CHAT", f"{place}: {str(message)[:200]}: a message has texts as role and content")
    return [{key: value for key, value in message.items() if value is not None} for message in chat]


def _transcript(text: str) -> list[Message]:
    """The turns of ``User: ...`` and ``Assistant: ...``; what stands before the first is none of them."""
    starts = list(_SPEAKER.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [
        {"role": start[1].lower(), "content": text[start.end() : end].strip()}
        for start, end in zip(starts, ends, strict=True)
    ]
