"""Trials before a run begins: ``optimizer.lr=auto`` finds a rate, ``budget=10min`` the number of steps for a time.

A trial is made in one process and its result saved in the run's folder, so that all processes of the run, and a resumed
run, have the same result.
"""

import gc
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from loralight.commands.measuring import measuring
from loralight.config.batch_size import with_rows_per_process
from loralight.config.build import build_data, build_probe, build_task, build_trainer
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.logs import show
from loralight.models.trust import trust_of, trusting
from loralight.training.epochs import Epochs, num_batches, planned_epochs, steps_of_epoch
from loralight.training.footprint import train_step
from loralight.training.launch import num_nodes, num_processes
from loralight.training.rate_range import find_rate, num_steps
from loralight.training.time_budget import Pace, parse_time
from loralight.untrusted import read_json

AUTO = "auto"
_FILE = "tried.json"
_TIMED = 12  # training batches, and as many of validation
_TIMED_SECONDS = 20.0  # the same for a run without a budget
_MOST_STEPS = 2**53  # that a folder may say: beyond it not every number of steps is a float
_SHARE = 0.03  # share of the budget after which no more batches are timed


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
        (folder / _FILE).write_text(json.dumps(asdict(_try(config, spent))) + "\n", encoding="utf-8")
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


def _try(config: dict[str, Any], spent: float) -> Tried:
    started = perf_counter()
    trial = Trial(config)
    around = perf_counter() - started  # the run builds the model again
    ranks = num_processes(config["trainer"]) * num_nodes(config["trainer"])
    of_epoch = steps_of_epoch(trial.trainer, trial.data, num_ranks=ranks)
    planned = planned_epochs(trial.trainer, trial.task, of_epoch)
    steps, most = planned.steps(of_epoch, most=config["trainer"]["max_steps"]), None
    if config["budget"] is not None:
        budget = parse_time(config["budget"])
        pace = _pace(trial, ranks, most_seconds=_SHARE * budget).beside(around + _of_forgetting(trial))
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
    """

    pace: Pace
    epochs: Epochs | None
    of_epoch: int = 1
    most: int = -1

    def seconds(self, most_epochs: int | None = None) -> float:
        """Seconds that the run takes, without the start of its process, in at most so many epochs."""
        if self.epochs is None:
            return self.pace.around
        epochs = self.epochs if most_epochs is None else self.epochs.at_most(most_epochs)
        steps = epochs.steps(self.of_epoch, most=self.most)
        return self.pace.seconds(steps, validations=math.ceil(steps / (self.of_epoch * epochs.validated_every)))


def expected(trial: Trial, *, built: float) -> Expected:
    """What a run will take, from timing some of its batches.

    Args:
        trial: of the run's settings.
        built: seconds that it took to build the trial.
    """
    ranks = num_processes(trial.config["trainer"]) * num_nodes(trial.config["trainer"])
    of_epoch = steps_of_epoch(trial.trainer, trial.data, num_ranks=ranks)
    pace = _pace(trial, ranks, most_seconds=_TIMED_SECONDS).beside(built + _of_forgetting(trial))
    if trial.task.adapter.is_probe and trial.config["trainer"]["max_epochs"] == AUTO:
        return Expected(pace=pace, epochs=None)  # it is solved for
    planned = planned_epochs(trial.trainer, trial.task, of_epoch)
    return Expected(pace=pace, epochs=planned, of_epoch=of_epoch, most=trial.config["trainer"]["max_steps"])


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


def _pace(trial: Trial, ranks: int, *, most_seconds: float) -> Pace:
    """The pace of steps and validation, from timing some batches of each for up to about ``most_seconds``."""
    data, trainer = trial.data, trial.trainer
    train, validation = data.train_dataloader(), data.val_dataloader()
    step = _seconds(trial.step, train, most_seconds) * trainer.accumulate_grad_batches
    measured = _seconds(trial.measure, validation, most_seconds) / ranks
    held_out = num_batches(validation, trainer.limit_val_batches)
    around = held_out
    if "test" in data.splits:
        around += num_batches(data.test_dataloader(), trainer.limit_test_batches)
    if trial.config["probe"]:
        around = 2 * around + len(train)
    return Pace(step=step, validation=measured * held_out, around=measured * around)


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
