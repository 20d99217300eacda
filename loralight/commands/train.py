"""``loralight train``: check, fit, test the best checkpoint, save the adapter, report."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import DictConfig
from torchmetrics import MetricCollection

from loralight import logs, stopping
from loralight.artifacts.export import save_adapter
from loralight.artifacts.lock import release
from loralight.artifacts.run_folder import FAILED, check_free, going_on, is_finished, take
from loralight.commands.auto_batch import with_largest_batch
from loralight.commands.batch_norm import with_batch_norm
from loralight.commands.initialising import initialise_, with_initialised
from loralight.commands.next_commands import how_to_go_on, next_commands
from loralight.commands.summary import final_report, summarise
from loralight.commands.sweep import take_gpu
from loralight.commands.trial import check_trial, read_tried, try_out
from loralight.commands.warm_start import read_start
from loralight.config.batch_size import check_batch_size, with_rows_per_process
from loralight.config.build import (
    build_data,
    build_probe,
    build_task,
    build_trainer,
    check_config,
    check_trainer,
    recipe,
    with_metric,
)
from loralight.config.composition import plain
from loralight.config.sharding import check_sharding
from loralight.data import TaskData
from loralight.disk import refuse_taken_away, telling_of_disk
from loralight.errors import InputError, did_you_mean
from loralight.models.trust import trust_of, trusting
from loralight.reports.live import LivePage, mark_failed
from loralight.reports.runs import read_run
from loralight.stopping import Stopped
from loralight.training.answers import KeepAnswers
from loralight.training.checkpoint import FolderCheckpointIO, newest
from loralight.training.epochs import AUTO, few_steps, odd_rate, set_epochs_, total_steps
from loralight.training.forgetting.watch import Forgetting
from loralight.training.fully_shard import FullyShard
from loralight.training.launch import check_processes, launch, process_rank
from loralight.training.out_of_memory import telling_of_memory
from loralight.training.precision import half_precision_lines
from loralight.training.preflight import (
    accelerations_table,
    batch_lines,
    before_activations,
    memory_table,
    padding_line,
    rates_line,
    targets_table,
)
from loralight.training.probe import NoProbe, fit_probe_once, start_head_
from loralight.training.progress import Throughput, progress_callbacks
from loralight.training.settling import settle_
from loralight.training.stop_at_step import StopAtStep
from loralight.training.task import AdapterTask
from loralight.world import is_again


def main(config: DictConfig) -> float | None:
    """The job that Hydra runs: resolve the config, lock the run's folder, and train in as many processes as asked for.

    Returns:
        The best value of the monitored metric, which a sweeper optimises.

    Raises:
        Stopped: a signal ended the run, and the sweep if the run is a job of one.
    """
    hydra = HydraConfig.get()
    settings, output_dir = plain(config), Path(hydra.runtime.output_dir)
    logs.configure(rank=process_rank() or 0)
    check_config(settings)
    if none := [
        name for name in ("max_epochs", "max_steps", "limit_train_batches") if settings["trainer"].get(name) == 0
    ]:
        raise InputError("E-TRAINER", f"trainer.{none[0]}=0 would train nothing and save it")
    sources = hydra.runtime.config_sources
    flags = [f"--config-dir={Path(source.path).absolute()}" for source in sources if source.provider == "command-line"]
    overrides = [*flags, *hydra.overrides.task]
    first = process_rank() in (None, 0)
    if (hydra.mode == RunMode.MULTIRUN or is_again()) and is_finished(output_dir, settings):
        (output_dir / FAILED).unlink(missing_ok=True)
        if first:
            print(f"loralight: {output_dir} is done", file=sys.stderr)
        done = read_run(output_dir)
        return done.score(done.monitored)
    take_gpu(settings["trainer"])
    check_batch_size(settings, overrides)
    check_sharding(settings)
    check_trial(settings, alone=process_rank() is None)
    check_processes(settings["trainer"])
    check_trainer(settings, output_dir)
    settings, was_told = going_on(output_dir, settings), settings["resume"] is not None
    started = perf_counter()
    try:
        if first and settings["resume"] is None:
            check_free(output_dir, settings)  # before minutes of trials
        with telling_of_memory(settings, output_dir):
            settings, overrides = with_batch_norm(settings, overrides)
        if settings["auto_batch"]:
            settings, overrides = with_largest_batch(settings, overrides)
        stopping.check()
        if first:
            with stopping.held(), telling_of_disk(output_dir):
                take(output_dir, settings, overrides)
            if settings["resume"] and not was_told:
                print(f"loralight: {output_dir} holds an unfinished run of these settings: goes on", file=sys.stderr)
        with telling_of_disk(output_dir), telling_of_memory(settings, output_dir):
            try_out(settings, output_dir, spent=perf_counter() - started)
        stopping.check()
        best: float | None = launch(work, settings, output_dir)
    except Stopped as stopped:
        raise Stopped(stopped.by, how_to_go_on(output_dir) if first else None) from None
    except Exception as error:
        if first and process_rank() is None:
            mark_failed(output_dir, error)
        raise
    finally:
        release(output_dir)
    return best


def work(config: dict[str, Any], output_dir: Path) -> float | None:
    """The work of each process."""
    rank = process_rank() or 0
    with telling_of_disk(output_dir), telling_of_memory(config, output_dir):
        logs.configure(output_dir / ("train.log" if rank == 0 else f"train.rank{rank}.log"), rank=rank)
        return Run(config, output_dir).train()


class Run:
    """One training run; the constructor builds and checks everything, and prints the first tables.

    Args:
        config: of `loralight train`, in plain values.
        output_dir: the run's folder.
        callbacks: in addition to those of the config.
        bar: whether a terminal gets a progress bar.
    """

    def __init__(
        self,
        config: dict[str, Any],
        output_dir: Path,
        *,
        callbacks: Sequence[lightning.Callback] = (),
        bar: bool = True,
    ) -> None:
        self.output_dir = output_dir
        self.page = page_of(config, output_dir)
        pages = [self.page] if isinstance(self.page, LivePage) else []
        self.data = build_data(with_rows_per_process(config))
        self.resumed = newest(output_dir) if config["resume"] is not None else None
        tried = read_tried(config, output_dir)
        if tried.lr is not None:
            config = {**config, "optimizer": {**config["optimizer"], "lr": tried.lr}}
        self.most_steps = tried.most_steps
        config = with_metric(config, self.data)
        self.config = with_initialised(config, output_dir) if self.resumed else config
        self.task = build_task(self.config, self.data.model_arguments())
        self.data.suit_(self.task.model)
        forgotten = build_probe(config)
        start = None if self.resumed and forgotten is None else config["init"]
        self.start = {} if start is None else read_start(self.task, start, self.data.model_arguments())
        _compile_(self.task, self.config["compile"])
        may_be_shorter = self._is_auto and self.config["budget"] is None  # else budget= would be refused
        hint = "; budget=10min ends a run in that time" if may_be_shorter else ""
        self.throughput, progress = progress_callbacks(self.data.batch_size, bar=bar, hint=hint)
        # StopAtStep is first, so that it never stops when only some callbacks have handled the end of a step
        self.trainer = build_trainer(self.config, output_dir, [StopAtStep(output_dir), *progress, *pages, *callbacks])
        self.forgetting = None if forgotten is None else Forgetting(forgotten, self.trainer)
        if isinstance(self.trainer.strategy, FullyShard):
            self.trainer.strategy.suit_(self.task)
        _check_monitors(self.config["monitor"]["metric"], self.trainer, self.task)
        if process_rank() in (None, 0):
            logs.logger.info("run folder: %s", output_dir)
            padding = padding_line(self.task, self.data)
            memory = memory_table(*before_activations(self.task), title="memory before activations")
            batches = batch_lines(self.trainer, self.data)
            logs.show(*self.data.report(), *batches, *padding, targets_table(self.task), *rates_line(self.task))
            logs.show(accelerations_table(self.task), memory)
            if tried.lr is not None:
                logs.logger.info("optimizer.lr=auto: %g", tried.lr)
            if self.resumed:
                logs.logger.info("going on from %s", self.resumed)

    def train(self) -> float | None:
        """Fit, test the best checkpoint, save its adapter, report; returns the best value of the monitored metric."""
        with self.page, telling_of_memory(self.config, self.output_dir):
            return self._train()

    def _train(self) -> float | None:
        task, data, trainer, metric = self.task, self.data, self.trainer, self.config["monitor"]["metric"]
        probe = None if self.resumed else self._probe_()
        if self.forgetting is not None:
            with trusting(**trust_of(self.config)):
                self.forgetting.begin(task)
        if self.start:
            task.load_trainable(self.start, self.config["init"])
            logs.logger.info("init: begins at the adapter and head of %s", self.config["init"])
        elif not self.resumed:
            initialise_(task, data, trainer, self.output_dir, self.config["names"]["adapter"])
        if self.forgetting is not None and (self.start or not task.adapter.starts_at_base):
            self.forgetting.start(task)
        is_solved = probe is not None and task.adapter.is_probe and self._is_auto
        if self._is_auto and not is_solved:
            logs.logger.info(set_epochs_(trainer, task, data, most_steps=self.most_steps))
        for caution in [] if is_solved else self._cautions():
            logs.logger.info(caution)
        with stopping.held():
            if not is_solved:
                trainer.fit(task, datamodule=data, ckpt_path=self.resumed)
            score = _load_best(metric, trainer, task)
            if line := settle_(task, data, trainer):
                logs.logger.info(line)
            metrics = _measure(trainer, task, data, self.output_dir)
            metrics |= {} if self.forgetting is None else self.forgetting.end(task)
            task.learning.gather_(trainer.global_rank)
            if trainer.is_global_zero:
                stopping.check()  # for the last time: a run that is told to stop while it saves ends normally
                _save(self.config, self.output_dir, task, data, metrics, self.throughput, probe or {})
        # a run that ends before its first validation has no best checkpoint
        return metrics.get(metric) if score is None else score

    def _cautions(self) -> list[str]:
        """Lines on a number of steps, and a rate, by which little would be learnt, and on a precision that is slow."""
        optimizer, lr = self.task.optimizer, self.config["optimizer"].get("lr")
        is_adam = optimizer is not None and optimizer.func in (torch.optim.Adam, torch.optim.AdamW)
        steps = total_steps(self.trainer, self.data)
        odd = odd_rate(self.task.adapter, lr, steps) if is_adam and isinstance(lr, float) else []
        return [*few_steps(self.trainer, self.data), *odd, *half_precision_lines(self.trainer)]

    @property
    def _is_auto(self) -> bool:
        """Whether the data decides the number of epochs."""
        settings = self.config["trainer"]
        return bool(settings["max_epochs"] == AUTO and settings["max_steps"] == -1 and not settings.get("fast_dev_run"))

    def _probe_(self) -> dict[str, float] | None:
        """Fit a linear probe, start the head there if asked for, and return its scores; None if there is no probe."""
        task = self.task
        if not (self.config["probe"] or task.adapter.is_probe or task.head_settings.start == "probe"):
            return None
        try:
            probe = fit_probe_once(task, self.data, self.trainer)
        except NoProbe as reason:
            starts = "; the head starts at random" if task.head_settings.start == "probe" else ""
            logs.logger.info("no linear probe: %s%s", reason, starts)
            return None
        metric = self.config["monitor"]["metric"]
        if metric in probe.scores:
            logs.logger.info("linear probe, before the first step: %s %.4f", metric, probe.scores[metric])
        if task.adapter.is_probe or task.head_settings.start == "probe":
            start_head_(task, probe.classifier)
        return probe.scores


def page_of(config: dict[str, Any], output_dir: Path) -> AbstractContextManager[Any]:
    """The page that the first process writes while it trains, if it is asked for and its packages are installed."""
    if not config["page"] or process_rank() not in (None, 0):
        return nullcontext()
    if not all(map(find_spec, ("jinja2", "matplotlib"))):
        logs.logger.info('no page of the run: it needs pip install "loralight[report]" (page=false asks for none)')
        return nullcontext()
    names = config["names"]
    title = f"{output_dir.name}: {names['task']}, {names['adapter']}"
    return LivePage(output_dir, title=title, metric=config["monitor"]["metric"])


def _compile_(task: AdapterTask, backend: bool | str) -> None:
    """Compile the model with `torch.compile` in place; its class and the names of its tensors stay."""
    if backend is False:
        return
    known = torch.compiler.list_backends()
    if backend is not True and backend not in torch.compiler.list_backends(exclude_tags=()):
        hint = did_you_mean(str(backend), known)
        raise InputError("E-COMPILE", f"compile={backend}: give true, false or a backend, {', '.join(known)}.{hint}")
    task.model.compile(backend="inductor" if backend is True else backend)


def _check_monitors(metric: str, trainer: lightning.Trainer, task: AdapterTask) -> None:
    """Check that all monitored metrics are measured; Lightning would notice only after the first epoch."""
    scores = task.scores["validation"]
    assert isinstance(scores, MetricCollection)
    logged = ["validation/loss", *map(str, scores.keys()), "train/loss", "train/epoch_loss"]
    watching = [*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks]
    watched = [(type(c).__name__, c.monitor) for c in watching if isinstance(c, ModelCheckpoint | EarlyStopping)]
    for where, name in [("monitor.metric", metric), *watched]:
        if name is not None and name not in (*logged, "step", "epoch"):
            hint = did_you_mean(name, logged)
            raise InputError("E-MONITOR", f"{where}: {name} is not measured.{hint} Possible: {', '.join(logged)}")


def _load_best(metric: str, trainer: lightning.Trainer, task: AdapterTask) -> float | None:
    """Load the best checkpoint's weights, if one was chosen by ``metric``; returns its score."""
    for chosen in trainer.checkpoint_callbacks:
        if isinstance(chosen, ModelCheckpoint) and chosen.monitor == metric and chosen.best_model_path:
            state = FolderCheckpointIO().load_checkpoint(chosen.best_model_path)["state_dict"]
            task.load_trainable(state, chosen.best_model_path)
            return None if chosen.best_model_score is None else float(chosen.best_model_score)
    return None


def _measure(trainer: lightning.Trainer, task: AdapterTask, data: TaskData, output_dir: Path) -> dict[str, float]:
    """The task's metrics on validation rows, and on test rows if there are any; the answers to both are kept."""
    judged = "test" if "test" in data.splits else "validation"
    for split in {"validation", judged}:
        trainer.callbacks.append(KeepAnswers(output_dir, split, is_judged=split == judged))  # type: ignore[attr-defined]
    measured = dict(trainer.validate(task, datamodule=data, verbose=False)[0])
    if "test" in data.splits:
        measured |= trainer.test(task, datamodule=data, verbose=False)[0]
    return {name: float(value) for name, value in measured.items()}


def _save(
    config: dict[str, Any],
    output_dir: Path,
    task: AdapterTask,
    data: TaskData,
    metrics: dict[str, float],
    throughput: Throughput,
    probe: dict[str, float],
) -> None:
    refuse_taken_away(output_dir)
    folder = output_dir / "adapter"
    task.adapter = task.adapter.finish_(task.model)
    save_adapter(task, folder, recipe=recipe(config, data.model_arguments(), task), metrics=metrics)
    summary = summarise(config, output_dir, task, data, metrics, throughput.seconds_per_step(), probe)
    final_report(summary, task, data, output_dir, next_commands(config, output_dir))
