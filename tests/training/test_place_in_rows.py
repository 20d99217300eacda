"""A place in an epoch, as any number of processes and accumulated batches counts it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loralight.data import TaskData
from loralight.training.place_in_rows import in_batches, in_rows


class Numbers(TaskData):
    """A hundred rows, and a few."""

    def load(self) -> dict[str, list[int]]:
        return {"train": list(range(103)), "validation": [0]}

    def collate(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows)


def trainer_of(ranks: int = 1, accumulated: int = 1, *, rank: int = 0, **of_trainer: Any) -> Any:
    data = Numbers(batch_size=of_trainer.pop("batch_size", 4), length_grouped=False)
    data.setup()
    place = {"global_rank": rank, "world_size": ranks, "accumulate_grad_batches": accumulated, "max_steps": -1}
    device = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        **{**place, "limit_train_batches": 1.0, "datamodule": data, **of_trainer}, strategy=device
    )
    data.trainer = trainer  # type: ignore[assignment]
    return trainer


def saved(trainer: Any, *, batches: int, epoch: int = 1, **others: Any) -> dict[str, Any]:
    """The position that a run saves after some batches of its second epoch."""
    trainer.datamodule.train_dataloader()
    steps = -(-batches // trainer.accumulate_grad_batches)
    counts = {"epoch": epoch, "batches": batches, "total_batches": 100 + batches, "validated": 0, "is_last": False}
    return {**counts, "steps": 30 + steps, "ranks": trainer.world_size, **in_rows(trainer, epoch, batches), **others}


def as_by_an_earlier_version(at: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in at.items() if name not in ("dealt", "rows_per_step")}


def rows_of(trainer: Any, epoch: int = 1) -> list[list[int]]:
    loader = trainer.datamodule.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


def test_a_position_of_as_many_processes_stays_as_it_is() -> None:
    at = saved(trainer_of(accumulated=2), batches=6, validated=4)
    found = in_batches(trainer_of(accumulated=2), at)
    assert found == at | {"ahead": 0, "is_dealt_anew": False}


def test_steps_of_the_same_size_are_counted_in_the_batches_of_now() -> None:
    at = saved(trainer_of(2, 3, batch_size=2), batches=9, validated=6)
    found = in_batches(trainer_of(1, 1, batch_size=12), at)
    assert not found["is_dealt_anew"]
    assert {name: found[name] for name in ("batches", "total_batches", "validated", "steps", "ahead")} == {
        **{"batches": 3, "total_batches": 103, "validated": 2, "steps": 33, "ahead": 0}
    }


@pytest.mark.parametrize(("ranks", "batches"), [(1, 8), (2, 5), (3, 2)])
def test_a_position_of_an_earlier_version_goes_on_with_the_batches_that_are_left(ranks: int, batches: int) -> None:
    at = as_by_an_earlier_version(saved(trainer_of(ranks), batches=batches))
    now = trainer_of(ranks)
    assert in_batches(now, at)["batches"] == batches
    assert rows_of(now) == rows_of(trainer_of(ranks))[batches:]


def test_accumulated_batches_of_an_earlier_version_were_dealt_one_by_one() -> None:
    before = rows_of(trainer_of())[:8]  # of four rows each, as that version had them; two make a step
    now = trainer_of(accumulated=2)
    found = in_batches(now, as_by_an_earlier_version(saved(trainer_of(), batches=8)))
    rest = [row for batch in rows_of(now) for row in batch]
    assert sorted([*rest, *(row for batch in before for row in batch)]) == list(range(103))
    assert found["batches"] == 26 - len(rows_of(now)) and found["ahead"] == 0


@pytest.mark.parametrize("limit", [1.0, 0.5, 6])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_epoch_that_is_done_but_not_validated_is_done_for_any_number_of_processes(ranks: int, limit: Any) -> None:
    at = saved(trainer_of(2), batches=13, is_last=True)
    now = trainer_of(ranks, limit_train_batches=limit)
    found = in_batches(now, at)
    whole = -(-103 // (4 * ranks))
    assert found["batches"] == (min(limit, whole) if isinstance(limit, int) else int(limit * whole))
    assert found["is_last"] and found["validated"] == 0
    assert rows_of(now) == []


@pytest.mark.parametrize("max_steps", [-1, 100])
def test_schedules_move_to_where_the_rows_are_unless_the_run_counts_steps(max_steps: int) -> None:
    at = saved(trainer_of(1), batches=16)  # 64 of 103 rows in the second epoch, by single steps of 26
    found = in_batches(trainer_of(4, max_steps=max_steps), at)
    left = 3  # steps of up to 16 rows, for the 39 rows that are left
    assert found["is_dealt_anew"] and found["batches"] == 7 - left
    assert found["ahead"] == (7 + (7 - left) - at["steps"] if max_steps < 0 else 0)
