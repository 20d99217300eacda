"""Trials before a run begins: ``optimizer.lr=auto`` finds a rate, ``budget=10min`` the number of steps for a time.

A trial is made in one process and its result saved in the run's folder, so that all processes of the run, and a resumed
run, have the same result.
"""

import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from loralight.adapters.base import trainable
from loralight.commands.measuring import measuring
from loralight.config.batch_size import with_rows_per_process
from loralight.config.build import build_data, build_probe, build_task, build_trainer
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.logs import show
from loralight.models.trust import trust_of, trusting
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.epochs import Epochs, num_batches, planned_epochs, steps_of_epoch
from loralight.training.footprint import train_step
from loralight.training.launch import num_nodes, num_processes
from loralight.training.preflight import num_bytes
from loralight.training.rate_range import find_rate, num_steps
from loralight.training.time_budget import Pace, parse_time
from loralight.untrusted import read_json

AUTO = "auto"
_FILE = "tried.json"
_TIMED = 12  # training batches, and as many of validation
_TIMED_SECONDS = 20.0  # the same for a run without a budget
_MOST_STEPS = 2**53  # that a folder may say: beyond it not every number of steps is a float
_SHARE = 0.03  # share of the budget after which no more batches are timed
_SAMPLE = 64 * 2**20  # bytes of a checkpoint that are written to time it


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The result of a trial.

    Args:
        lr: the optimizer's learning rate; None if the settings give it.
        most_steps: optimizer steps that fit the budget; None if there is no budget.
    """

    lr: float | None = None
    most_steps: int | None = None


class Trial:
    """A model on its device, with its data, to try training steps.

    Args:
        config: as composed for ``loralight train``, in plain values.
        data: the run's data, if it has been read already.
    """

    def __init__(self, config: dict[str, Any], data: TaskData | None = None) -> None:
        self.config, alone = config, measuring(with_rows_per_process(config))
        self.trainer = build_trainer(alone, Path(), [])
        self.device, self._precision = self.trainer.strategy.root_device, self.trainer.precision_plugin
        self.data = build_data(alone) if data is None else data
        self.task = build_task(alone, self.data.model_arguments())
        self.data.suit_(self.task.model)
        self._precision.convert_module(self.task)
        self.task.to(self.device)
        self.task.start_accelerations_()
        self.optimizer = self.task.make_optimizer()

    def step(self, batch: Any) -> float:
        """Make a training step on a batch; returns its loss."""
        clip = self.config["trainer"].get("gradient_clip_val")
        context = self._precision.forward_context
        return float(train_step(self.task, self.optimizer, self._moved(batch), context, clip=clip))

    @torch.no_grad()
    def measure(self, batch: Any) -> float:
        """Compute the loss of a batch as in validation."""
        with self._precision.forward_context():
            return float(self.task.step(self._moved(batch)).loss)

    def write(self, folder: Path) -> tuple[float, int]:
        """The seconds that writing a checkpoint takes, by writing a part of it, and its bytes.

        Args:
            folder: on the run's disk.

        Raises:
            InputError: the disk cannot be written to (``E-DISK``).
        """
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in (*trainable(self.task.model).values(), *states) if isinstance(value, Tensor)]
        part: dict[str, Tensor] = {}
        while len(part) < len(tensors) and num_bytes(part.values()) < _SAMPLE:
            part[str(len(part))] = tensors[len(part)].detach()
        started = perf_counter()
        with TemporaryDirectory(dir=folder) as temporary:
            FolderCheckpointIO().save_checkpoint(part, Path(temporary) / "checkpoint")
        size = num_bytes(tensors)
        return (perf_counter() - started) * max(1.0, size / max(num_bytes(part.values()), 1)), size

    def _moved(self, batch: Any) -> Any:
        return move_data_to_device(self._precision.convert_input(batch), self.device)


def free_device() -> None:
    """Free the memory of models that are no longer used."""
    gc.collect()
    torch.cuda.empty_cache()


def check_trial(config: dict[str, Any], *, alone: bool) -> None:
    """Check whether the trials that the settings ask for are possible, before anything heavy.

    Args:
        alone: whether the run has only this process, and the process only this run.

    Raises:
        InputError: the budget is not a time, or the length of the run is set already (``E-BUDGET``), or a trial is
            asked for with several processes or several runs (``E-TRIAL``).
    """
    trainer = config["trainer"]
    if config["budget"] is not None:
        parse_time(config["budget"])
        if config["resume"] is None and (trainer["max_epochs"] != AUTO or trainer["max_steps"] != -1):
            raise InputError(
                "E-BUDGET", "budget= decides how long the run is: leave out trainer.max_epochs and trainer.max_steps"
            )
    if not alone and (asked := _asked(config)):
        raise InputError(
            "E-TRIAL",
            f"{' and '.join(asked)}: this is tried before a run begins, by one process alone, and here are several "
            "processes or several runs. Try it in a run by itself, and give what it prints",
        )


def try_out(config: dict[str, Any], folder: Path, *, spent: float = 0.0) -> None:
    """Make the trials that the settings ask for, and save their result in the run's folder; not for a resumed run.

    Args:
        config: of ``loralight train``, in plain values.
        folder: the run's.
        spent: seconds of the budget that are gone already.

    Raises:
        InputError: not one step fits the budget (``E-BUDGET``).
    """
    if config["resume"] is None and _asked(config):
        (folder / _FILE).write_text(json.dumps(asdict(_try(config, folder, spent))) + "\n", encoding="utf-8")
        free_device()


def read_tried(config: dict[str, Any], folder: Path) -> Tried:
    """The result of a run's trials.

    Raises:
        InputError: the run's folder does not have the result, or a wrong one (``E-RUN``).
    """
    asked = _asked(config)
    found = read_json(folder / _FILE) if asked and os.path.lexists(folder / _FILE) else {}
    good = {
        "optimizer.lr=auto": isinstance(lr := found.get("lr"), float) and 0 < lr < math.inf,
        "budget": type(steps := found.get("most_steps")) is int and 0 < steps <= _MOST_STEPS,  # true is an int too
    }
    if not all(good[name] for name in asked):
        raise InputError("E-RUN", f"{folder / _FILE} does not say what was found for {' and '.join(asked)}")
    return Tried(lr=lr if good["optimizer.lr=auto"] else None, most_steps=steps if good["budget"] else None)


def _asked(config: dict[str, Any]) -> list[str]:
    is_asked = {"optimizer.lr=auto": config["optimizer"].get("lr") == AUTO, "budget": config["budget"] is not None}
    return [name for name, is_so in is_asked.items() if is_so]


def _try(config: dict[str, Any], folder: Path, spent: float) -> Tried:
    started = perf_counter()
    trial = Trial(config)
    around = perf_counter() - started  # the run builds the model again
    ranks = num_processes(config["trainer"]) * num_nodes(config["trainer"])
    of_epoch = steps_of_epoch(trial.trainer, trial.data, num_ranks=ranks)
    planned = planned_epochs(trial.trainer, trial.task, trial.data, of_epoch)
    steps, most = planned.steps(of_epoch, most=config["trainer"]["max_steps"]), None
    if config["budget"] is not None:
        budget = parse_time(config["budget"])
        parts = _Parts.of(trial, folder, ranks, most_seconds=_SHARE * budget)
        pace = parts.pace(trial, of_epoch).beside(around + _of_forgetting(trial))
        left = budget - spent - (perf_counter() - started)
        most = pace.steps(left, of_epoch=of_epoch, validated_every=planned.validated_every)
    if config["optimizer"].get("lr") != AUTO:
        return Tried(most_steps=most)
    steps = steps if most is None else min(steps, most)
    if not (count := num_steps(steps)):
        show(f"optimizer.lr=auto: a run of {steps} steps is too short to try rates: the method's own is taken")
    return Tried(lr=_rate(trial, count), most_steps=None if most is None else max(most - count, 1))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run will take.

    Args:
        pace: of its parts.
        epochs: its length; None if it takes no steps.
        of_epoch: optimizer steps of an epoch.
        most: optimizer steps at most, if above 0.
        short: seconds of these parts in a run of one batch of each split.
        checkpoint: bytes of a checkpoint.
    """

    pace: Pace
    epochs: Epochs | None
    of_epoch: int = 1
    most: int = -1
    short: float = 0.0
    checkpoint: int = 0

    def seconds(self, most_epochs: int | None = None) -> float:
        """Seconds that the timed parts of the run take in at most so many epochs."""
        if self.epochs is None:
            return self.pace.around
        epochs = self.epochs if most_epochs is None else self.epochs.at_most(most_epochs)
        steps = epochs.steps(self.of_epoch, most=self.most)
        return self.pace.seconds(steps, validations=math.ceil(steps / (self.of_epoch * epochs.validated_every)))


def expected(trial: Trial, folder: Path, *, built: float) -> Expected:
    """What a run will take, from timing some of its batches and the writing of a checkpoint.

    Args:
        trial: of the run's settings.
        folder: on the run's disk.
        built: seconds that it took to build the trial.
    """
    ranks = num_processes(trial.config["trainer"]) * num_nodes(trial.config["trainer"])
    of_epoch = steps_of_epoch(trial.trainer, trial.data, num_ranks=ranks)
    parts = _Parts.of(trial, folder, ranks, most_seconds=_TIMED_SECONDS)
    beside = built + _of_forgetting(trial)
    pace, short = parts.pace(trial, of_epoch).beside(beside), parts.short(trial) + beside
    if is_solved(trial.config, is_probe=trial.task.adapter.is_probe):
        return Expected(pace=pace, epochs=None, short=short, checkpoint=parts.checkpoint)
    planned, most = (
        planned_epochs(trial.trainer, trial.task, trial.data, of_epoch),
        trial.config["trainer"]["max_steps"],
    )
    return Expected(pace=pace, epochs=planned, of_epoch=of_epoch, most=most, short=short, checkpoint=parts.checkpoint)


def is_solved(config: Mapping[str, Any], *, is_probe: bool) -> bool:
    """Whether a run is solved for and takes no steps, if its head allows that: a linear probe without a length."""
    return is_probe and config["trainer"]["max_epochs"] == AUTO and config["trainer"]["max_steps"] == -1


def _rate(trial: Trial, count: int) -> float:
    """The rate that a range test of ``count`` steps finds, with two digits; the method's own rate if it finds none."""
    own = float(trial.config["adapter"]["lr"])
    torch.manual_seed(trial.config["seed"])
    found = find_rate(trial.optimizer, trial.step, list(islice(batches(trial.data), count)), own=own)
    return own if found is None else float(f"{found:.2g}")


def batches(data: TaskData) -> Iterator[Any]:
    """Training batches without end."""
    while True:
        yield from data.train_dataloader()


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What was timed.

    Args:
        train: seconds of a training batch.
        measured: seconds of a batch of validation or test, shared by all processes.
        saved: seconds of writing a checkpoint.
        checkpoint: its bytes.
    """

    train: float
    measured: float
    saved: float
    checkpoint: int

    @classmethod
    def of(cls, trial: Trial, folder: Path, ranks: int, *, most_seconds: float) -> "_Parts":
        """Times some batches of each split for up to about ``most_seconds``, and the writing of a checkpoint."""
        train = _seconds(trial.step, trial.data.train_dataloader(), most_seconds)
        measured = _seconds(trial.measure, trial.data.val_dataloader(), most_seconds) / ranks
        saved, checkpoint = trial.write(folder)
        return cls(train=train, measured=measured, saved=saved, checkpoint=checkpoint)

    def pace(self, trial: Trial, of_epoch: int) -> Pace:
        """The pace of a run with ``of_epoch`` optimizer steps in an epoch."""
        data, trainer = trial.data, trial.trainer
        held_out, tested = num_batches(data.val_dataloader(), trainer.limit_val_batches), 0
        if "test" in data.splits:
            tested = num_batches(data.test_dataloader(), trainer.limit_test_batches)
        around = _around(trial, held_out=held_out, tested=tested, trained=len(data.train_dataloader()))
        per_step, per_validation = _checkpoints(trial.config, of_epoch)
        return Pace(
            step=self.train * trainer.accumulate_grad_batches + per_step * self.saved,
            validation=self.measured * held_out + per_validation * self.saved,
            around=self.measured * around + self.saved,  # the best checkpoint is read, and its adapter written
        )

    def short(self, trial: Trial) -> float:
        """Seconds of a run with one batch of each split."""
        around = _around(trial, held_out=1, tested=int("test" in trial.data.splits), trained=1)
        per_step, per_validation = _checkpoints(trial.config, 1)
        return self.train + self.measured * (1 + around) + self.saved * (1 + per_step + per_validation)


def _around(trial: Trial, *, held_out: int, tested: int, trained: int) -> int:
    """The batches that are measured beside training, of so many in each split."""
    task, config = trial.task, trial.config
    has_probe = config["probe"] or task.adapter.is_probe or task.head_settings.start == "probe"
    return trained + 3 * held_out + 2 * tested if has_probe else held_out + tested  # two passes over what chooses


def _checkpoints(config: Mapping[str, Any], of_epoch: int) -> tuple[float, int]:
    """The checkpoints that are written for each optimizer step on average, and for each validation."""
    given = (config.get("callbacks") or {}).values()
    chosen = [one for one in given if one and str(one.get("_target_")).endswith("ModelCheckpoint")]
    inside = [1 / every for one in chosen if (every := one.get("every_n_train_steps"))]
    at_ends = sum(bool(one.get("save_on_train_epoch_end")) for one in chosen)
    return sum(inside) + at_ends / of_epoch, len(chosen) - len(inside) - at_ends


def _of_forgetting(trial: Trial) -> float:
    """Seconds of the probe of forgetting, which is measured three times as a rule."""
    if (probe := build_probe(trial.config)) is None:
        return 0.0
    started = perf_counter()
    with trusting(**trust_of(trial.config)), torch.no_grad(), trial.task.unaccelerated():
        probe.prepare(trial.task)
        prepared = perf_counter()
        probe.measure(trial.task, None)
        ended = perf_counter()
    trial.task.start_accelerations_()
    return prepared - started + 3 * (ended - prepared)


def _seconds(run: Callable[[Any], object], loader: DataLoader[Any], most: float) -> float:
    """Seconds that ``run`` takes for a batch, timed on batches spread over the split, as neighbours are alike."""
    numbers, seconds = list(loader.batch_sampler or []), list[float]()
    for rows in numbers[:: max(1, len(numbers) // _TIMED)]:
        started = perf_counter()
        run(loader.collate_fn([loader.dataset[row] for row in rows]))
        seconds.append(perf_counter() - started)
        if sum(seconds) > most and len(seconds) > 1:
            break
    return mean(seconds[1:] or seconds)  # the first batch warms up
