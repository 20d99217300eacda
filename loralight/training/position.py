"""The position of a run, and resuming from exactly there."""

from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from loralight.data import TaskData
from loralight.data.seeds import seed_of
from loralight.errors import InputError
from loralight.training.fingerprint import Adapted, fingerprint
from loralight.training.optim import follow
from loralight.training.place_in_rows import in_batches, in_rows
from loralight.training.saved_position import checked_position


class Position(Callback):
    """Tracks a run's position, stores it in every checkpoint, and has Lightning's loops resume from it.

    The stored position is that of the last optimizer step, whenever the checkpoint is written. Between two steps no
    weight changes, so batches accumulated since then are computed again and no gradient has to be stored. The batch up
    to which the epoch has been validated is stored too; a validation that is due but was not finished is done first.

    Of a `TaskData`, the position is stored in rows: the steps of the epoch, and the rows of a step. So any number of
    processes can go on, with any number of accumulated batches. If steps have another size then, the rows that are left
    of the epoch are dealt anew, and the schedules stand where they would if all steps so far had had this size.

    Lightning's own position depends on the hook in which a checkpoint is written, and could make its loops leave out a
    validation or a batch. It is never read, but replaced when a checkpoint is loaded.

    This callback comes before all others, since these may write checkpoints.

    Raises:
        InputError: the run was begun on other base weights (``E-BASE``), or has trained for more epochs than
            ``trainer.max_epochs`` (``E-RESUME``), or was begun in more or fewer processes with data that is no
            `TaskData` (``E-RESUME-ORDER``), or the checkpoint's position is not what a run writes (``E-CKPT-STATE``).
    """

    def __init__(self) -> None:
        self.epoch, self.batches = 0, 0  # whole epochs, and batches of the next up to the last optimizer step
        self.steps, self.total_batches = 0, 0  # of all epochs, up to the last optimizer step
        self.ahead = 0  # steps by which schedules are ahead of `steps`, since earlier steps had more rows than now
        self._seen = 0  # batches of all epochs, including those since the last optimizer step
        self.validated = 0  # batches of the epoch at its last validation
        self._interval: int | float | None = None  # batches from one validation to the next
        self._begun = -1  # the epoch at which a plain loader was started or resumed
        self._base = ""
        self._resumed: dict[str, Any] | None = None
        self._is_unlogged = False  # whether Lightning has yet to log the values of a step or an epoch

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._base = fingerprint(cast(Adapted, pl_module))
        if self._resumed is None:
            return
        if self._base != (before := self._resumed["base"]):
            raise InputError(
                "E-BASE",
                f"the run was begun on other weights than this base model has (fingerprints {before} and "
                f"{self._base}); resume it with those, or start a new run",
            )
        stopping = [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]
        trainer.should_stop |= any(c.stopping_reason != EarlyStoppingReason.NOT_STOPPED for c in stopping)
        if row := self._resumed["row"]:
            for logger in trainer.loggers:
                logger.log_metrics(row, step=self.steps - 1)
                logger.save()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._interval = trainer.val_check_batch
        if not _has_our_data(trainer):
            self._begin_rows_anew(trainer, pl_module)
        if self._resumed is None:
            return
        trainer.ckpt_path = None  # else Lightning would never remove this checkpoint when better ones come
        trainer.callback_metrics.update(self._resumed["metrics"])
        for config in trainer.lr_scheduler_configs:
            follow(config.scheduler, at=self.steps + self.ahead if self._resumed.get("is_dealt_anew") else None)
        loop = trainer.fit_loop.epoch_loop
        if not self.batches:
            loop.restarting = False
            return
        self._skip_what_is_validated(trainer, self.batches)
        # Lightning counts a validation at the start of an epoch's loop like the batch before it
        loop._batches_that_stepped = self.steps - self._is_due(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not _has_our_data(trainer) and trainer.current_epoch != self._begun:  # else its rows are seeded already
            _seed_rows(pl_module, trainer.current_epoch)

    def on_train_batch_start(self, *_: Any) -> None:
        self._is_unlogged = False

    def on_validation_start(self, *_: Any) -> None:
        self._is_unlogged = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        self._skip_what_is_validated(trainer, batch_idx + 1)
        if trainer.global_step == self.steps:
            return
        self.batches, self.steps, self.total_batches = batch_idx + 1, trainer.global_step, self._seen
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._is_unlogged = every > 0 and self.steps % every == 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = trainer.fit_loop.batch_idx + 1

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._is_unlogged = True
        if trainer.is_last_batch:  # `max_steps` may end a run within an epoch, which a longer run finishes
            self.epoch, self.batches, self.validated = self.epoch + 1, 0, 0

    def on_train_end(self, *_: Any) -> None:
        self._is_unlogged = False

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["position"] = {
            "epoch": self.epoch,
            "batches": self.batches,
            "steps": self.steps,
            "total_batches": self.total_batches,
            "validated": self.validated,
            "is_last": bool(self.batches) and self.batches == trainer.num_training_batches,
            "ahead": self.ahead,
            "ranks": trainer.world_size,
            **(in_rows(trainer, self.epoch, self.batches) if _has_our_data(trainer) else {}),
            "base": self._base,
            "row": self._row(trainer) if self._is_unlogged else {},
            "metrics": dict(trainer.callback_metrics),
        }

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        at = checked_position(checkpoint)
        if at["ranks"] != trainer.world_size and not _has_our_data(trainer):
            raise InputError(
                "E-RESUME-ORDER",
                f"the checkpoint is of {at['ranks']} processes, these are {trainer.world_size}; resume with as many, "
                "or give a datamodule that derives from loralight.TaskData: any number can go on with its rows",
            )
        if trainer.max_epochs not in (None, -1) and at["epoch"] > trainer.max_epochs:
            raise InputError(
                "E-RESUME", f"{at['epoch']} epochs are done, trainer.max_epochs is {trainer.max_epochs}; give as many"
            )
        self._resumed = at = in_batches(trainer, at) if _has_our_data(trainer) else at
        self.epoch, self.batches, self.validated = at["epoch"], at["batches"], at["validated"]
        self.steps, self.total_batches = at["steps"], at["total_batches"]
        self._seen = self.total_batches
        self.ahead = cast(Any, pl_module).steps_ahead = at.get("ahead", 0)
        checkpoint["loops"]["fit_loop"].update(_progress(at))

    def _begin_rows_anew(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Restart a loader that is not ours: the epoch's rows in the order of its seed, from the run's position.

        Lightning has begun to read before this, after a restart at the first row. Rows that were used before are read
        again and skipped: a sampler that is not ours cannot start later.
        """
        fetcher, loaders = trainer.fit_loop._data_fetcher, trainer.fit_loop._combined_loader
        assert fetcher is not None and loaders is not None
        if any(isinstance(loader, _Stateful) for loader in loaders.flattened):
            return  # Lightning resumes such a loader by itself
        self._begun = self.epoch
        _seed_rows(task, self.epoch)
        iter(fetcher)
        for _ in range(self.batches):
            next(fetcher)
        fetcher.fetched = 0  # Lightning adds the finished batches

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether Lightning will validate after `batches`, before its next batch."""
        every = trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (every is not None and (self.epoch + 1) % every):
            return False
        number = self.total_batches if every is None else self.batches
        return isinstance(self._interval, int) and self.batches > self.validated and number % self._interval == 0

    def _skip_what_is_validated(self, trainer: lightning.Trainer, batches: int) -> None:
        """Have Lightning validate after ``batches`` of the epoch only if that was not done before."""
        if isinstance(self._interval, int):
            number = self._seen if trainer.check_val_every_n_epoch is None else batches
            # Lightning validates after multiples of this number
            trainer.val_check_batch = self._interval if batches > self.validated else number + 1

    def _row(self, trainer: lightning.Trainer) -> dict[str, float]:
        """Values that Lightning will log only after all callbacks, including the one that writes this checkpoint."""
        metrics = trainer._logger_connector.metrics["log"]
        return {**{name: float(value) for name, value in metrics.items()}, "epoch": trainer.current_epoch}


def _has_our_data(trainer: lightning.Trainer) -> bool:
    return isinstance(trainer.datamodule, TaskData)  # type: ignore[attr-defined]


def _seed_rows(task: lightning.LightningModule, epoch: int) -> None:
    """Seed the generator from which a plain loader draws the order of an epoch's rows."""
    torch.manual_seed(seed_of(cast(int, task.seed), epoch))


def _progress(at: dict[str, Any]) -> dict[str, Any]:
    """The state of Lightning's loops between two batches or epochs, by the names of its checkpoints."""
    begun = at["epoch"] + (at["batches"] > 0)
    epochs = {"ready": begun, "started": begun, "processed": at["epoch"], "completed": at["epoch"]}
    return {
        "epoch_progress": {"total": epochs, "current": epochs},
        "epoch_loop.state_dict": {"_batches_that_stepped": at["steps"]},
        "epoch_loop.batch_progress": {
            "total": _done(at["total_batches"]),
            "current": _done(at["batches"]),
            "is_last_batch": at["is_last"],
        },
        # of all things due, a resumed loop does only a validation that has begun before its next batch
        "epoch_loop.val_loop.batch_progress": {
            "total": {**_done(0), "ready": 1, "started": 1},
            "current": _done(0),
            "is_last_batch": False,
        },
    }


def _done(count: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), count)
