"""Stopping a training run on request: after an optimizer step, with a checkpoint, in all processes."""

from pathlib import Path
from signal import Signals
from typing import Any

import lightning
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from loralight import stopping
from loralight.logs import keep
from loralight.stopping import Stopped
from loralight.training.checkpoint import FolderCheckpointIO, newest
from loralight.training.task import AdapterTask


class StopAtStep(lightning.Callback):
    """Saves and stops at the end of the optimizer step in which a process was told to stop, or of the next.

    All processes stop at the same step. The request costs no extra communication, since it is sent with the sums that
    each step reduces over the processes anyway. A validation has no such sums, but there is a checkpoint before each.
    So in a validation or a test a process leaves after its current batch, without asking the others.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._checkpoints = folder / "checkpoints" / "last"
        self._stepped = self._unsaved = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        trainer._signal_connector = _NoSignals(trainer)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._stepped = self._unsaved = True

    def on_save_checkpoint(self, *_: Any) -> None:
        self._unsaved = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if not self._stepped:  # no checkpoint holds the gradients of an unfinished step
            return
        self._stepped = False
        assert isinstance(pl_module, AdapterTask)
        stops = pl_module.told_to_stop or (trainer.world_size == 1 and stopping.told() is not None)
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if stops or loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save(trainer)
        if stops:
            keep(f"told to stop: ends after step {trainer.global_step}")
            raise Stopped(stopping.told() or Signals.SIGTERM)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if not self._unsaved:  # else the validation is within a step, after which the run will stop
            stopping.check()

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        stopping.check()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        mine = self._saved()  # all are written by now
        if trainer.is_global_zero and mine and newest(self._checkpoints.parents[1]) not in mine:
            for folder in mine:
                FolderCheckpointIO().remove_checkpoint(folder)

    def _save(self, trainer: lightning.Trainer) -> None:
        before = self._saved()
        name = f"epoch={trainer.current_epoch}-step={trainer.global_step}-boundary"
        trainer.save_checkpoint(self._checkpoints / name)
        for folder in (folder for folder in before if folder.name != name):
            trainer.strategy.remove_checkpoint(folder)  # once the new one is whole

    def _saved(self) -> list[Path]:
        return list(self._checkpoints.glob("epoch=*-boundary"))


class _NoSignals(_SignalConnector):
    """Leaves signals to `loralight.stopping`: Lightning's signal handler would wait for other processes."""

    def register_signal_handlers(self) -> None:
        pass
