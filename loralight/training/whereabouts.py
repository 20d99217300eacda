"""Descriptions of a step's place in a run, so that users can look at its rows."""

from collections.abc import Callable, Sequence

import lightning
from torch.utils.data import DataLoader

from loralight.data.batching import BatchSampler

_SHOWN = 8


def place_of_step(trainer: lightning.Trainer, ranks: Sequence[int]) -> Callable[[], str]:
    """A function that describes the step ``trainer`` is about to make, with the rows that ``ranks`` used for it."""
    last = trainer.fit_loop.epoch_loop.batch_idx
    first = last - last % trainer.accumulate_grad_batches
    step, epoch, world = trainer.global_step + 1, trainer.current_epoch, trainer.world_size

    def tell() -> str:
        where = f"step {step} (epoch {epoch + 1}"
        if len(ranks) < world:
            where += f", rank {', '.join(map(str, ranks))}"
        loader = trainer.train_dataloader
        sampler = loader.batch_sampler if isinstance(loader, DataLoader) else None
        if isinstance(sampler, BatchSampler):
            numbers = range(first, last + 1)
            rows = [row for number in numbers for rank in ranks for row in sampler.share(epoch, number, rank)]
            more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            where += f"; rows {', '.join(map(str, rows[:_SHOWN]))}{more} of the train split, counted from 0"
        return f"{where})"

    return tell
