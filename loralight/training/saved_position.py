"""Checks of a position that was read from a checkpoint: a stranger may have written it, and loops count by it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from loralight.annotations import mismatch
from loralight.errors import InputError

MOST_PARTS = 1000
"""Of an epoch, each with steps of another size: as often may a run go on with other processes. Each costs a shuffle."""
_MOST = 2**53
_KINDS = {
    **dict.fromkeys(("epoch", "batches", "steps", "total_batches", "validated", "ranks"), int),
    "is_last": bool,
    "base": str,
    "row": Mapping[str, float],
    "metrics": Mapping[str, Any],
}
_LATER = {"ahead": int, "rows_per_step": int, "dealt": Sequence[Sequence[int]]}  # earlier versions did not keep these
_LEAST = {"ranks": 1, "rows_per_step": 1, "ahead": -_MOST}  # of others 0


def checked_position(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The position in a checkpoint.

    Raises:
        InputError: it has not what a run writes (``E-CKPT-STATE``).
    """
    at = checkpoint.get("position")
    if not isinstance(at, dict):
        raise _refused("position", at, "a mapping")
    for name, kind in (_KINDS | _LATER).items():
        if name in at or name in _KINDS:
            expected = mismatch(at.get(name), kind) or _out_of_range(name, at[name])
            if expected:
                raise _refused(name, at.get(name), expected)
    if at["batches"] > at["total_batches"]:
        raise _refused("batches", at["batches"], f"at most those of all epochs, {at['total_batches']}")
    return at


def check_dealt(dealt: Sequence[Sequence[int]], num_rows: int) -> None:
    """Raise ``E-CKPT-STATE`` unless an epoch of ``num_rows`` rows can have been dealt so: steps have 1 row or more."""
    if len(dealt) > MOST_PARTS:
        raise _refused("dealt", f"{len(dealt)} parts", f"at most {MOST_PARTS} parts")
    if any(len(part) != 2 or min(part) < 1 for part in dealt):  # a negative number, for one, would take rows twice
        raise _refused("dealt", dealt, "pairs of rows and steps, each at least 1")
    if sum(size * (steps - 1) + 1 for size, steps in dealt) > num_rows:  # of a part, the last step may have fewer rows
        raise _refused("dealt", dealt, f"steps of {num_rows} rows together")


def _out_of_range(name: str, value: Any) -> str:
    if name == "metrics":
        numbers = all(
            (isinstance(one, Tensor) and one.numel() == 1) or not mismatch(one, float) for one in value.values()
        )
        return "" if numbers else "a mapping to numbers"
    if type(value) is not int or _LEAST.get(name, 0) <= value <= _MOST:
        return ""
    return f"a whole number of at least {_LEAST.get(name, 0)}"


def _refused(name: str, value: Any, expected: str) -> InputError:
    return InputError(
        "E-CKPT-STATE",
        f"the checkpoint's {name} is {str(value)[:200]}, not {expected}; resume from a checkpoint that a run wrote",
    )
