"""A position that no run has written is refused before a run counts by it."""

from typing import Any

import pytest
import torch

from loralight.errors import InputError
from loralight.training.place_in_rows import in_batches
from loralight.training.saved_position import MOST_PARTS, check_dealt, checked_position
from loralight.training.step import EpochLoss

from .test_place_in_rows import saved, trainer_of

COUNTS = ("epoch", "batches", "steps", "total_batches", "validated")
WHOLE = {"base": "0a1b", "row": {"train/loss": 0.5, "epoch": 1}, "metrics": {"validation/loss": torch.tensor(0.5)}}


def position() -> dict[str, Any]:
    return saved(trainer_of(), batches=6) | WHOLE


def test_what_a_run_writes_is_taken_as_it_is() -> None:
    at = position() | {"ahead": -3}
    assert checked_position({"position": at}) is at
    earlier = {name: value for name, value in at.items() if name not in ("ahead", "rows_per_step", "dealt")}
    assert checked_position({"position": earlier}) is earlier


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in COUNTS for value in (-1, "2")),
        *((name, value) for name in ("epoch", "steps", "ahead", "ranks") for value in (2**60, 1.5, True, None, [1])),
        *((name, value) for name in ("ranks", "rows_per_step") for value in (0, -4)),
        *(("is_last", value) for value in (1, "no", None)),
        ("batches", 10**6),  # more than those of all epochs
        ("base", 3),
        *(("row", value) for value in ([], {"loss": "low"}, None)),
        *(("metrics", value) for value in ([], {"loss": "low"}, {"loss": torch.ones(2)})),
        *(("dealt", value) for value in ({"8": 1}, 3, ["ab"], [[8, 1.5]], [[8, True]])),
    ],
    ids=str,
)
def test_each_field_is_checked(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^E-CKPT-STATE: the checkpoint's {name} is "):
        checked_position({"position": position() | {name: value}})


@pytest.mark.parametrize("name", [*COUNTS, "is_last", "ranks", "base", "row", "metrics"])
def test_each_field_is_needed(name: str) -> None:
    at = position()
    del at[name]
    with pytest.raises(InputError, match=f"^E-CKPT-STATE: the checkpoint's {name} is None"):
        checked_position({"position": at})


@pytest.mark.parametrize("checkpoint", [{}, {"position": None}, {"position": [1]}])
def test_a_checkpoint_without_a_position_is_refused(checkpoint: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^E-CKPT-STATE: the checkpoint's position is "):
        checked_position(checkpoint)


@pytest.mark.parametrize("dealt", [[[0, 2]], [[8, -1]], [[8]], [[8, 1, 1]], [[8, 14]], [[1, 103], [4, 1]]], ids=str)
def test_steps_that_the_data_has_not_are_refused(dealt: Any) -> None:
    with pytest.raises(InputError, match=r"^E-CKPT-STATE: the checkpoint's dealt is "):
        in_batches(trainer_of(), position() | {"dealt": dealt})


@pytest.mark.parametrize("dealt", [[], [[8, 13]], [[1, 103]], [[103, 1]], [[10, 5], [20, 3]]], ids=str)
def test_steps_that_the_data_has_are_taken(dealt: Any) -> None:
    check_dealt(dealt, 103)


def test_endless_steps_are_refused_before_any_is_dealt() -> None:
    with pytest.raises(InputError, match=f"is {MOST_PARTS + 1} parts, not at most {MOST_PARTS} parts"):
        check_dealt([[1, 1]] * (MOST_PARTS + 1), 10**9)


@pytest.mark.parametrize("sums", [None, 1.0, [1.0], [1.0, 2.0, 3.0], ["a", "b"], {"loss": 1.0}], ids=str)
def test_sums_of_an_epoch_that_are_not_two_numbers_are_refused(sums: Any) -> None:
    with pytest.raises(InputError, match=r"^E-CKPT-STATE: the checkpoint's epoch_sums is "):
        EpochLoss().load_(sums)


@pytest.mark.parametrize("name", ["seed", "rows", "digests"])
@pytest.mark.parametrize("value", [None, "x", [1]], ids=str)
def test_data_that_no_run_describes_so_is_refused(name: str, value: Any) -> None:
    data = trainer_of().datamodule
    data.load_state_dict(data.state_dict())
    with pytest.raises(InputError, match=f"^E-CKPT-STATE: the checkpoint's data has no {name} that is "):
        data.load_state_dict(data.state_dict() | {name: value})
