"""The position within an epoch in rows, so that any number of processes and accumulated batches can go on from it."""

from typing import Any

import lightning

from loralight.data import TaskData
from loralight.training.saved_position import check_dealt


def in_rows(trainer: lightning.Trainer, epoch: int, batches: int) -> dict[str, Any]:
    """The part of a saved position that holds for any number of processes.

    Args:
        epoch: its number, from 0.
        batches: finished batches of the epoch, up to an optimizer step.
    """
    data = _data(trainer)
    dealt = [list(part) for part in data.dealt(epoch, batches)]
    return {"rows_per_step": data.rows_per_step, "dealt": dealt}


def in_batches(trainer: lightning.Trainer, at: dict[str, Any]) -> dict[str, Any]:
    """A saved position, counted in batches of the trainer's processes; its data goes on from there.

    If steps have another size than when the position was saved (``is_dealt_anew``), then ``ahead`` is the number of
    steps by which the run would be further than it is, if all of its steps had had the present size. It is 0 if
    ``max_steps`` ends the run, as a schedule then counts steps and not rows.

    Raises:
        InputError: the data has not the rows that are done (``E-CKPT-STATE``).
    """
    data, accumulated = _data(trainer), trainer.accumulate_grad_batches
    # earlier versions dealt each batch by itself, and kept neither their size nor that of steps
    of_batch = data.batch_size * at["ranks"]
    dealt = at.get("dealt", [(of_batch, at["batches"])] if at["batches"] else [])
    check_dealt(dealt, len(data.splits["train"]))
    last = _num_batches(trainer, data.go_on_at(at["epoch"], None))
    done = data.go_on_at(at["epoch"], dealt)
    if is_last := at["is_last"] or done >= last:
        data.go_on_at(at["epoch"], None)
        done = last
    ahead, is_dealt_anew = at.get("ahead", 0), at.get("rows_per_step", of_batch * accumulated) != data.rows_per_step
    if is_dealt_anew:
        as_many = at["epoch"] * -(-last // accumulated) + -(-done // accumulated)
        ahead = as_many - at["steps"] if trainer.max_steps < 0 else 0
    is_validated = at["validated"] == at["batches"]
    return {
        **at,
        "batches": done,
        "total_batches": at["total_batches"] - at["batches"] + done,
        "validated": done if is_validated else at["validated"] * done // max(at["batches"], 1),
        "is_last": is_last,
        "ahead": ahead,
        "is_dealt_anew": is_dealt_anew,
    }


def _data(trainer: lightning.Trainer) -> TaskData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, TaskData)
    return data


def _num_batches(trainer: lightning.Trainer, whole: int) -> int:
    """The batches that Lightning takes of an epoch with ``whole`` batches."""
    limit = trainer.limit_train_batches
    return min(limit, whole) if isinstance(limit, int) else int(limit * whole)
