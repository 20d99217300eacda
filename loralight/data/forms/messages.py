"""The messages of chats, in the forms that data sets have them."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from loralight.errors import InputError

Message = Mapping[str, Any]
KEYS = ({"role", "content"}, {"from", "value"})
"""The fields of a message; the second pair is ShareGPT's."""

_SPEAKERS = {"human": "user", "gpt": "assistant"}  # of ShareGPT
_SPEAKER = re.compile(r"^(system|user|assistant):[ \t]*", re.IGNORECASE | re.MULTILINE)


def read_messages(value: Any, place: str) -> list[Message]:
    """The messages in a cell.

    Raises:
        InputError: the cell holds no messages (``E-CHAT``).
    """
    chat = _transcript(value) if isinstance(value, str) else value
    chat = [_usual(message) for message in chat] if isinstance(chat, Sequence) else []
    if not chat:
        raise InputError("E-CHAT", f"{place}: {str(value)[:200]!r} is no list of messages, nor a transcript of turns")
    for message in chat:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError("E-CHAT", f"{place}: {str(message)[:200]}: a message has texts as role and content")
    return chat


def read_tools(value: Any, place: str) -> list[Any] | None:
    """The schemas in a cell; None if it is empty.

    Raises:
        InputError: the cell holds no list of them (``E-CHAT``).
    """
    with suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) and value.strip() else value
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise InputError("E-CHAT", f"{place}: {str(value)[:200]!r} is no list of tools' JSON schemas")
    return [_filled(tool) for tool in value]


def answers_in(chat: Sequence[Message]) -> list[int]:
    """The places of the assistant's turns that answer something."""
    return [turn for turn, message in enumerate(chat) if turn and message["role"] == "assistant"]


def counts(message: Message) -> bool:
    """Whether a message may be learnt: OpenAI's files say ``weight: 0`` where it may not."""
    return bool(message.get("weight") != 0)


def shown_call(call: Any) -> str:
    """A call of a tool as a text for people."""
    return json.dumps(call.get("function", call) if isinstance(call, Mapping) else call)


def _usual(message: Any) -> Any:
    """A message with a role and a text as content; what is none is returned as it is."""
    if not isinstance(message, Mapping):
        return message
    message = _filled(message)
    if KEYS[1] <= message.keys():
        speaker = message["from"]
        role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
        return {"role": role, "content": message["value"]}
    calls = message.pop("tool_calls", None)
    if isinstance(calls, list) and calls:
        message = {"content": "", **message, "tool_calls": [_with_arguments(call) for call in calls]}
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        message["content"] = "".join(str(part.get("text", "")) for part in content)
    return message


def _with_arguments(call: Any) -> Any:
    """A call of a tool with its arguments as an object, which templates expect, and not as a JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    with suppress(ValueError, RecursionError):
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    return call


def _filled(value: Any) -> Any:
    """Without the fields that a table fills with nothing, as its rows have one type."""
    if isinstance(value, Mapping):
        return {key: _filled(one) for key, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


def _transcript(text: str) -> list[Message]:
    """The turns of ``User: ...`` and ``Assistant: ...``; text before the first turn is left out."""
    starts = list(_SPEAKER.finditer(text))
    ends = [*(start.start() for start in starts), len(text)][1:]
    return [
        {"role": start[1].lower(), "content": text[start.end() : end].strip()}
        for start, end in zip(starts, ends, strict=True)
    ]
