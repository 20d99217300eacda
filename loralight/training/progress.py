"""A run's output while it trains: a bar with loss and throughput, a line for each epoch, the time that steps take."""

import sys
from collections.abc import Container, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch.nn.parallel import DistributedDataParallel

from loralight.logs import human, logger
from loralight.training.learning import Learning
from loralight.training.preflight import num_bytes
from loralight.training.task import AdapterTask

_MOST_IN_A_LINE = 5  # scores
_TIMED = 15.0  # seconds of steps that tell the pace
_LONG = 300.0  # seconds that one may want to know of


class Throughput(Callback):
    """Times each training batch.

    The first steps of a process warm up caches and are left out of the median.
    """

    _WARM_UP = 3

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._started = perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.seconds.append(perf_counter() - self._started)

    def seconds_per_step(self) -> float | None:
        """Median over the batches after the first few; None if nothing was trained."""
        timed = self.seconds[self._WARM_UP :] or self.seconds
        return median(timed) if timed else None


class TimeToGo(Callback):
    """One log line on the time that a long run will take, once a few of its steps are timed.

    Args:
        hint: what a user may do about it, after the time; may be empty.
    """

    def __init__(self, hint: str = "") -> None:
        self._hint = hint
        self._began: tuple[int, float] | None = None  # a step and when it ended, after the first warmed up caches
        self._is_told = False

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._is_told or not trainer.is_global_zero:
            return
        step, now = trainer.global_step, perf_counter()
        if self._began is None:
            self._began = step, now
            return
        first, since = self._began
        if now - since < _TIMED or step == first:
            return
        self._is_told = True
        left = (now - since) / (step - first) * (trainer.estimated_stepping_batches - step)
        if _LONG < left < float("inf"):
            logger.info("about %.0f minutes of steps to go%s", left / 60, self._hint)


class EpochLines(Callback):
    """One log line for each epoch."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._is_validated = False  # in this epoch; old metrics stay in `callback_metrics`

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started, self._is_validated = perf_counter(), False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._is_validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AdapterTask)
        measured = trainer.callback_metrics if self._is_validated else {}
        scores = {name: value for name, value in measured.items() if name.startswith("validation/")}
        values = {"train/loss": pl_module.epoch_loss, **{name: float(value) for name, value in scores.items()}}
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = perf_counter() - self._started
        if trainer.is_global_zero:
            logger.info(
                "epoch %d%s, step %d, %.0f s: %s",
                trainer.current_epoch + 1,
                of,
                trainer.global_step,
                seconds,
                _scores(values, {getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks}),
            )


class Communication(Callback):
    """A log line on the bytes that processes exchange in a step under DDP, once DDP has counted one."""

    def __init__(self) -> None:
        self._is_told = False

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        ddp = trainer.strategy.model
        if self._is_told or trainer.world_size == 1 or not isinstance(ddp, DistributedDataParallel):
            return
        counted = ddp._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        if sizes := counted.get("rebuilt_bucket_sizes"):  # after its first step DDP cuts the gradients anew
            self._is_told = True
            assert isinstance(pl_module, AdapterTask)
            if trainer.is_global_zero:
                messages = [int(size) for size in sizes.split(",")]
                buffers = num_bytes(ddp.modules_buffers)
                logger.info(exchanged(messages, pl_module.learning, num_ranks=trainer.world_size, buffers=buffers))


def exchanged(messages: Sequence[int], learning: Learning, *, num_ranks: int, buffers: int) -> str:
    """A line on what processes exchange in a step, beside the bytes of what learns.

    Args:
        messages: the bytes of each sum of gradients.
        learning: what learns.
        num_ranks: number of processes.
        buffers: bytes that the first process sends to the others.
    """
    learns = num_bytes(learning.parameters.values())
    same = "as much as what learns" if sum(messages) == learns else f"NOT the {learns} bytes of what learns"
    sent = f"; the first process sends {human(buffers)} of running statistics" if buffers else ""
    count = f"{len(messages)} message{'s' * (len(messages) > 1)}"
    return (
        f"communication: each step sums {human(sum(messages))} of gradients over {num_ranks} processes "
        f"({sum(messages)} bytes in {count}), {same}{sent}"
    )


def _scores(values: Mapping[str, float], watched: Container[str | None]) -> str:
    """Scores as text. If there are many, the first line has only losses and monitored metrics, the rest come below."""
    first = [name for name in values if len(values) <= _MOST_IN_A_LINE or name.endswith("loss") or name in watched]
    others = [name for name in values if name not in first]
    line = ", ".join(f"{name} {values[name]:.4f}" for name in first)
    columns = [f"{name.removeprefix('validation/')} {values[name]:.4f}" for name in others]
    return "\n  ".join(
        [line, *("   ".join(columns[at : at + _MOST_IN_A_LINE]) for at in range(0, len(columns), _MOST_IN_A_LINE))]
    )


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with loss and rows per second over all processes; on standard error."""

    def __init__(self, throughput: Throughput, rows_per_batch: int) -> None:
        super().__init__(refresh_rate=20, console_kwargs={"stderr": True})
        self._throughput, self._rows_per_batch = throughput, rows_per_batch

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        metrics = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if recent := self._throughput.seconds[-20:]:
            metrics["rows/s"] = f"{self._rows_per_batch * trainer.world_size / median(recent):.0f}"
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}/{last}" if last and last > 0 else f"Epoch {current_epoch + 1}"
        return text.ljust(len(self.validation_description))  # else the bar would jump


def progress_callbacks(rows_per_batch: int, *, bar: bool = True, hint: str = "") -> tuple[Throughput, list[Callback]]:
    """The callbacks of a run; the bar only if standard error is a terminal. For the hint see `TimeToGo`."""
    throughput = Throughput()
    shown = [ProgressBar(throughput, rows_per_batch)] if bar and sys.stderr.isatty() else []
    return throughput, [throughput, EpochLines(), TimeToGo(hint), Communication(), *shown]
