"""Chats, in the chat template of the tokenizer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from loralight.data.forms.form import Document, Form
from loralight.data.forms.messages import Message, answers_in, counts, read_messages, read_tools, shown_call
from loralight.errors import InputError
from loralight.models.chat_templates import bounded, check_template
from loralight.models.pretrained import tokenise

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks the assistant's turns in a chat template
_REASONING = re.compile(r"<(\w+)>\s*\Z")  # a mark by which a template has an answer begin
_EXCHANGE: list[Message] = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes!"}]


class Chat(Form):
    """Messages in the tokenizer's chat template; the assistant's turns and their ends are learnt.

    Messages are a list of {role, content}, or of {from, value} as in ShareGPT, or a transcript: a text in which each
    turn begins on a new line with ``User:`` or ``Assistant:``. A content may be a list of parts of text, and nothing
    where a message calls tools, as in OpenAI's files for fine-tuning; as there, a message with ``weight: 0`` is not
    learnt. A row may have the tools that can be called: a list of JSON schemas, or the list as a text.

    Args:
        template: a chat template (Jinja) in place of the tokenizer's.
    """

    roles = ("messages",)
    optional = ("tools",)

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
        with _one_message("the chat template"):
            check_template(tokenizer.get_chat_template())

    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[list[Document]]:
        chats = []
        template = self.tokenizer.get_chat_template()
        for value, place in zip(rows[self.columns["messages"]], places, strict=True):
            chat = read_messages(value, f"{place}, column {self.columns['messages']!r}")
            if "tool_calls" not in template and any("tool_calls" in message for message in chat):
                raise InputError(
                    "E-CHAT",
                    f"{place}: the chat template leaves out calls of tools (tool_calls), so that answers would be "
                    "empty. Set data.chat_template to one that writes them",
                )
            if not any(message["role"] == "assistant" for message in chat):
                names = ", ".join(dict.fromkeys(message["role"] for message in chat)) or "none"
                raise InputError("E-CHAT", f"{place}: no turn of the assistant, only of: {names}")
            chats.append(chat)
        column = self.columns.get("tools")
        given = rows[column] if column else [None] * len(chats)
        tools = [read_tools(value, f"{place}, column {column!r}") for value, place in zip(given, places, strict=True)]
        is_marked, opening = _GENERATION.search(template) is not None, self._opening()
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        for chat, some, place in zip(chats, tools, places, strict=True):
            if is_marked and all(map(counts, chat)):
                made = self._rendered(chat, place, tools=some, **options)
                yield [(made["input_ids"], [bool(learnt) for learnt in made["assistant_masks"]])]
            else:
                yield self._by_prefixes(chat, some, place, opening)

    def _by_prefixes(self, chat: list[Message], tools: Any, place: str, opening: str) -> list[Document]:
        """Learn the text that each turn of the assistant adds to the chat before it, as the template marks none.

        A turn that begins the chat is not learnt: it answers nothing, and transformers renders no empty chat. A
        template may write a turn otherwise once more have come. Without the marks of reasoning that holds none, it is
        learnt as it stands in the chat. Without its reasoning, it is learnt where it ends the chat: a document too.
        So is each answer of a template that asks for reasoning and then drops it, see `_with_reasoning`.
        """
        texts = [self._rendered(chat, place, tools=tools)]
        for turn in filter(lambda turn: counts(chat[turn]), answers_in(chat)):
            asked = self._rendered(chat[:turn], place, tools=tools, add_generation_prompt=True)
            written = self._rendered(chat[: turn + 1], place, tools=tools)
            answered = _with_reasoning(asked, written, chat[turn]["content"])
            if answered is None:
                odd = asked[_shared(asked, written) :]
                raise InputError(
                    "E-CHAT",
                    f"{place}: the chat template asks for an answer by {odd[:60]!r}, which it leaves out of the answer "
                    "itself, so there is no saying which tokens are the assistant's. Set data.chat_template to one "
                    "that asks without it, or that marks answers with {% generation %}",
                )
            texts += [asked, answered, asked + answered[len(asked) :].removeprefix(opening)]
        whole, *parts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # the template writes them
        answers = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
        documents: list[Document] = []
        while True:
            learnt, left = [False] * len(whole), []
            for before, *written in answers:
                after = next((ids for ids in written if whole[: len(ids)] == ids), None)
                if after is None:
                    left.append((before, *written))
                    continue
                start = _shared(before, after)  # a last line break may be one token with what follows
                end = self._end_of_turn(after, start)
                learnt[start:end] = [True] * (end - start)
            if any(learnt) or not left:
                documents.insert(0, (whole, learnt))
            if not left:
                return documents
            answers, whole = left, left[-1][1]

    def _end_of_turn(self, ids: list[int], start: int) -> int:
        """The place after a turn's last special token: the model need not write the line break that may follow."""
        special = set(self.tokenizer.all_special_ids)
        return next((at + 1 for at in range(len(ids) - 1, start - 1, -1) if ids[at] in special), len(ids))

    def _rendered(self, chat: Sequence[Message], place: str, **options: Any) -> Any:
        with _one_message(f"{place}: the chat template refuses this chat"), bounded():
            return self.tokenizer.apply_chat_template([dict(turn) for turn in chat], **{"tokenize": False, **options})

    def record(self, given: Any) -> dict[str, Any]:
        """A record of messages: a text is a turn of the user; a chat that ends with an answer is used without it."""
        column = self.columns["messages"]
        value = given.get(column) if isinstance(given, Mapping) and "role" not in given else given
        if isinstance(value, str) and value is given:
            value = [{"role": "user", "content": value}]
        try:
            chat = read_messages(value, f"{given!r}")
        except InputError as error:
            message = f"give a text, a list of messages, or a record with {column!r}: {error}"
            raise InputError("E-INPUT", message) from error
        tools = given.get(self.columns.get("tools", "")) if isinstance(given, Mapping) else None
        return self._asked(chat[:-1] if chat[-1]["role"] == "assistant" else chat, tools)

    def _asked(self, chat: list[Message], tools: Any) -> dict[str, Any]:
        if not chat:
            raise InputError("E-INPUT", "a chat that begins with an answer has nothing to answer")
        record: dict[str, Any] = {self.columns["messages"]: [dict(message) for message in chat]}
        return record if tools is None else {**record, self.columns["tools"]: read_tools(tools, "the tools")}

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        chat = record[self.columns["messages"]]
        tools = record.get(self.columns.get("tools", ""))
        text = self._rendered(chat, f"{chat!r}", tools=tools, add_generation_prompt=True)
        ids: list[int] = tokenise(self.tokenizer, text, add_special_tokens=False)["input_ids"]
        return ids

    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        chat = read_messages(row[self.columns["messages"]], "a row")
        if not (answers := answers_in(chat)):
            return None
        last = max((turn for turn in answers if chat[turn]["content"]), default=answers[-1])  # calls may have no text
        return self._asked(chat[:last], row.get(self.columns.get("tools", ""))), chat[last]["content"]

    def shown(self, record: Mapping[str, Any]) -> str:
        return "\n".join(
            f"{message['role']}: {message['content']}{''.join(map(shown_call, message.get('tool_calls', ())))}"
            for message in record[self.columns["messages"]]
        )

    def notes(self) -> list[str]:
        if "tools" not in self.columns or "tools" in self.tokenizer.get_chat_template():
            return []
        return [f"the chat template does not write tools: column {self.columns['tools']!r} is left out"]

    def opening(self) -> str:
        ids = self.tokenizer(self._opening(), add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _opening(self) -> str:
        """What the template writes before an answer without reasoning, such as two marks with nothing between them."""
        with suppress(InputError):  # it may refuse a chat like this
            before = self._rendered(_EXCHANGE[:1], "a test", add_generation_prompt=True)
            content = _EXCHANGE[1]["content"]
            after = _with_reasoning(before, self._rendered(_EXCHANGE, "a test"), content)
            return "" if after is None else after[len(before) :].partition(content)[0]
        return ""

    def ends(self) -> set[int]:
        """The special token that the template puts after an answer; it can differ from the model's end of text."""
        begun = self._rendered(_EXCHANGE[:1], "a test", add_generation_prompt=True) + self._opening()
        texts = [begun, self._rendered(_EXCHANGE, "a test")]
        before, after = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return set([token for token in after[_shared(before, after) :] if token in special][:1])


@contextmanager
def _one_message(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a template may raise anything
        raise InputError("E-CHAT", f"{what}: {str(error)[:300] or type(error).__name__}") from error


def read_template(given: str | None) -> str | None:
    """The given chat template, or the content of the file of that name.

    Raises:
        InputError: ``given`` is neither (``E-CHAT``).
    """
    if given is None or "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"data.chat_template={given}: no template, and not a file with one: {error}"
        raise InputError("E-CHAT", message) from error


def _with_reasoning(asked: str, answered: str, content: str) -> str | None:
    """The chat with an answer as the model is to write it; None if it does not go on from what asks for it.

    Templates such as DeepSeek-R1's and QwQ's ask by ``<think>``, and leave that and the reasoning out of all answers. A
    model has to write both, or to end at once the reasoning that it has been told to begin.

    Args:
        asked: the chat before the answer, with what asks for it.
        answered: the chat with the answer, as the template writes it.
        content: the answer.
    """
    if answered.startswith(asked):
        return answered
    if not (begun := _REASONING.search(asked)) or not answered.startswith(asked[: begun.start()]):
        return None
    mark, end, said = f"<{begun[1]}>", f"</{begun[1]}>", answered[begun.start() :].lstrip()
    thought = content.rpartition(end)[0].strip().removeprefix(mark).strip()
    return None if end in said else f"{asked}{thought}\n{end}\n\n{said}"


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The length of the common start of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
