"""Finding the form of the rows of language data."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from loralight.data.csv_files import header_hint
from loralight.data.forms.chats import Chat
from loralight.data.forms.form import Form
from loralight.data.forms.instructions import Instruction
from loralight.data.forms.messages import KEYS
from loralight.data.forms.texts import PlainText, PromptCompletion
from loralight.errors import InputError

_OF_INSTRUCTIONS = {"output": ("response", "answer", "completion"), "input": ("context",)}  # names such as Dolly's
_FORMS: tuple[type[Form], ...] = (Chat, PromptCompletion, Instruction, PlainText)


def form_of(
    tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str], *, join: str = "\n", template: str | None = None
) -> Form:
    """The form that has these columns.

    Args:
        tokenizer: of the model.
        columns: ``messages``, with or without ``tools``; ``prompt`` and ``completion``; ``instruction`` and ``output``,
            with or without ``input``; or ``text``, each with its name in the data.
        join: the text between a prompt and its completion.
        template: a chat template (Jinja) in place of the tokenizer's.
    """
    if "messages" in columns:
        return Chat(tokenizer, columns, template=template)
    if "instruction" in columns:
        return Instruction(tokenizer, columns, join=join, template=template)
    return PromptCompletion(tokenizer, columns, join=join) if "prompt" in columns else PlainText(tokenizer, columns)


def columns_of_form(rows: Mapping[str, Dataset], named: Mapping[str, str]) -> dict[str, str]:
    """The user's columns of the first form whose columns are all in the train split.

    Raises:
        InputError: there is no such form, or another split lacks one of its columns (``E-COLUMN``).
    """
    has = rows["train"].column_names
    for form in _FORMS:
        if all(named.get(role) in has for role in form.roles):
            optional = [role for role in form.optional if named.get(role) in has]
            columns = {role: named[role] for role in (*form.roles, *optional)}
            for split, part in rows.items():
                if missing := [column for column in columns.values() if column not in part.column_names]:
                    raise InputError("E-COLUMN", f"the {split} split has no column {missing[0]!r}, which train has")
            return columns
    wanted = "; or ".join(
        " and ".join(f"{role} ({named[role]!r})" for role in form.roles if role in named)
        for form in _FORMS
        if form.roles[0] in named
    )
    raise InputError(
        "E-COLUMN",
        f"the train split has columns {', '.join(map(repr, has))}; needed are {wanted}. Say which with "
        f"data.columns.<role>=<name>{_example(rows['train'], named)}.{header_hint(rows['train'])}",
    )


def join_messages_(rows: MutableMapping[str, Dataset], named: Mapping[str, str]) -> None:
    """Make chats of prompts and completions that are messages, as TRL has them; the prompt's are not learnt.

    Args:
        rows: the splits, in which the two columns become one of messages.
        named: the user's columns.
    """
    pair = [named.get("prompt", ""), named.get("completion", "")]
    features = rows["train"].features
    if "messages" not in named or named["messages"] in features or not all(map(_are_messages, map(features.get, pair))):
        return
    for split, part in rows.items():
        if all(column in part.column_names for column in pair):
            chats = [
                [{**message, "weight": weight} for weight, some in enumerate(both) for message in some or ()]
                for both in zip(*(part[column] for column in pair), strict=True)
            ]
            rows[split] = part.add_column(named["messages"], chats).remove_columns(pair)


def _example(rows: Dataset, named: Mapping[str, str]) -> str:
    """The settings that read rows with messages, instructions, or one or two columns of texts, as an example."""
    if chats := [name for name, kind in rows.features.items() if _are_messages(kind)]:
        return f", such as data.columns.messages={chats[0]}"
    texts = [name for name, kind in rows.features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    roles = dict(zip({1: ("text",), 2: ("prompt", "completion")}.get(len(texts), ()), texts, strict=False))
    if named.get("instruction") in texts:
        roles = {role: name for role, names in _OF_INSTRUCTIONS.items() for name in names if name in texts}
    said = " ".join(f"data.columns.{role}={name}" for role, name in roles.items())
    return f", such as {said}" if said else ""


def _are_messages(kind: Any) -> bool:
    """Whether a column's values are lists of messages, as `Chat` takes them."""
    fields = getattr(kind, "feature", None)
    return isinstance(fields, Mapping) and any(keys <= fields.keys() for keys in KEYS)
