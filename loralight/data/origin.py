"""The origin of a row, for messages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a split's rows come from; rows that were held out or chosen at random keep their numbers in the source.

    Args:
        split: the split's name.
        source: a file or folder, or the data set's name on the hub.
        files: where the source is several files, each with its number of rows.
        numbers: the rows' numbers in ``source``, from 0; None if the split has all its rows, in their order.
    """

    split: str
    source: str
    files: Sequence[tuple[str, int]] = ()
    numbers: Sequence[int] | None = None

    def row(self, number: int) -> str:
        """The name of a row of the split in messages, such as ``reviews.csv: train row 7``."""
        number, source = number if self.numbers is None else self.numbers[number], self.source
        for file, rows in self.files:
            source = file
            if number < rows:
                break
            number -= rows
        return f"{source}: {self.split} row {number}"

    def select(self, rows: Sequence[int], split: str) -> "Origin":
        """The origin of another split, which consists of some of these rows."""
        return replace(self, split=split, numbers=[row if self.numbers is None else self.numbers[row] for row in rows])
