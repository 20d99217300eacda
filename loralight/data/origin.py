"""Where a row comes from, as messages tell it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a split's rows come from: rows that were held out or chosen at random keep the numbers they have there.

    Args:
        split: its name.
        source: a file, or the data set's name on the hub.
        numbers: of the rows in ``source``, from 0; None if they are all its rows, in their order.
    """

    split: str
    source: str
    numbers: Sequence[int] | None = None

    def row(self, number: int) -> str:
        """The name of a row of the split in messages, such as ``reviews.csv: train row 7``."""
        return f"{self.source}: {self.split} row {number if self.numbers is None else self.numbers[number]}"

    def select(self, rows: Sequence[int], split: str) -> "Origin":
        """Where some of the rows come from, which make up another split."""
        return replace(self, split=split, numbers=[row if self.numbers is None else self.numbers[row] for row in rows])
