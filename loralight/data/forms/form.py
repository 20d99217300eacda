"""The common part of the forms of data, each of which turns a row into tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from loralight.data.columns import missing_hint
from loralight.errors import InputError
from loralight.models.pretrained import tokenise

Document = tuple[list[int], list[bool]]
"""Tokens, and which of them are learnt."""


class Form(ABC):
    """Turns a row into tokens, and tells which of them are learnt.

    Args:
        tokenizer: of the model.
        columns: the column's name for each of the `roles`, and for those of the `optional` ones that the data has.
    """

    roles: ClassVar[tuple[str, ...]]
    """The columns that rows of this form have."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Columns that they may have."""

    is_divisible: ClassVar[bool] = False
    """Whether a row that is too long is divided into several rows; in other forms it loses its end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str]) -> None:
        self.tokenizer, self.columns = tokenizer, {role: columns[role] for role in self.roles}
        self.columns |= {role: columns[role] for role in self.optional if role in columns}
        if tokenizer.eos_token_id is None:
            raise InputError("E-TOKENIZER", "the model's tokenizer has no end-of-text token (eos_token)")

    @abstractmethod
    def encode(self, rows: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[list[Document]]:
        """Each row's documents, mostly one.

        Args:
            rows: the columns of the rows.
            places: the name of each row in messages.

        Raises:
            InputError: a row cannot be learnt from (``E-TEXT``, ``E-CHAT``).
        """

    def record(self, given: Any) -> dict[str, Any]:
        """An input of `TextGeneration.predict` as a record with the column that generation starts from.

        Raises:
            InputError: the input is something else (``E-INPUT``).
        """
        column = self.columns[self.roles[0]]
        record = {column: given} if isinstance(given, str) else given
        if not isinstance(record, Mapping) or not isinstance(record.get(column), str):
            raise InputError("E-INPUT", f"{given!r}: give a text, or a record with a text under {column!r}")
        return {column: record[column]}

    @abstractmethod
    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        """The tokens that generation continues."""

    @abstractmethod
    def example(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        """A record as generation takes it, made from a row of data, and the text that follows; None if none does."""

    def shown(self, record: Mapping[str, Any]) -> str:
        """A record as a text for people."""
        return str(record[self.columns[self.roles[0]]])

    def notes(self) -> list[str]:
        """Lines on what of the data the model will not see."""
        return []

    def opening(self) -> str:
        """What stands before each answer in the data, and belongs to none."""
        return ""

    def ends(self) -> set[int]:
        """Tokens that end a text, besides the tokenizer's own end-of-text token."""
        return set()

    def _opened(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, after the token that opens a text for this model, if any; no end-of-text token."""
        found: list[list[int]] = tokenise(self.tokenizer, texts)["input_ids"]
        return [ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids for ids in found]

    def _text(self, value: Any, role: str, place: str) -> str:
        if not isinstance(value, str):
            chats = ". Messages go into one column (data.columns.messages), those not to learn with a weight of 0"
            hint = chats if isinstance(value, list) and value and isinstance(value[0], dict) else ""
            column = self.columns[role]
            said = f"{place}, column {column!r}: {str(value)[:200]} is not a text{hint}{missing_hint(value, column)}"
            raise InputError("E-TEXT", said)
        return value
