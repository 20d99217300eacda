"""Early stopping on a plateau, and the line that tells of it."""

import math
from typing import Any

import lightning
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(callbacks.EarlyStopping):
    """Ends training on a plateau: if for some validations, and some optimizer steps, no score was better than before.

    Lightning's own counts validations alone. An epoch of few rows is a few steps, and its score stands still for three
    epochs by chance.

    Args:
        monitor: the metric.
        mode: ``max`` if a higher score is better, else ``min``.
        patience: validations without a better score.
        patience_steps: optimizer steps without a better score.
        others: arguments of Lightning's class.
    """

    def __init__(self, *, monitor: str, mode: str, patience: int = 3, patience_steps: int = 100, **others: Any) -> None:
        super().__init__(monitor, mode=mode, patience=patience, **others)
        self.patience_steps = patience_steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.patience = max(self.patience, math.ceil(self.patience_steps / _steps_between(trainer)))


def _steps_between(trainer: lightning.Trainer) -> float:
    """Optimizer steps from one validation to the next."""
    interval: Any = trainer.val_check_interval
    batches = interval if isinstance(interval, int) else trainer.num_training_batches * interval
    return max(1.0, batches * (trainer.check_val_every_n_epoch or 1) / trainer.accumulate_grad_batches)


def stopped_line(trainer: lightning.Trainer) -> str | None:
    """A line on early stopping; None if the run went on to its last epoch."""
    last = trainer.max_epochs
    for callback in trainer.early_stopping_callbacks:
        if not isinstance(callback, callbacks.EarlyStopping) or not _has_stopped(callback):
            continue
        if callback.stopped_epoch + 1 != last:
            of = f" of {last}" if last and last > 0 else ""
            return f"stopped at epoch {callback.stopped_epoch + 1}{of}: {_reason(callback)}"
    return None


def _has_stopped(callback: callbacks.EarlyStopping) -> bool:
    return callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED


def _reason(callback: callbacks.EarlyStopping) -> str:
    if callback.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return str(callback.stopping_reason_message)
    verb = "rise above" if callback.mode == "max" else "fall below"
    return f"for {callback.wait_count} validations {callback.monitor} did not {verb} {float(callback.best_score):.4f}"
