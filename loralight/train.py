"""``loralight train``: check, fit, test the best checkpoint, save the adapter, report."""

import os
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torchmetrics import MetricCollection

from loralight import logs
from loralight.build import build_data, build_task, build_trainer, check_config, recipe
from loralight.checkpoint import FolderCheckpointIO, newest
from loralight.composition import plain
from loralight.data import TaskData
from loralight.errors import InputError, did_you_mean
from loralight.export import save_adapter
from loralight.launch import launch, outer_rank
from loralight.preflight import memory_table, targets_table
from loralight.progress import Throughput, progress_callbacks
from loralight.run_folder import take
from loralight.summary import final_report, summarise
from loralight.task import AdapterTask


def main(config: DictConfig) -> float | None:
    """The job that Hydra runs: resolve the config, take the run's folder, and train in as many processes as asked for.

    Returns:
        The best value of the monitored metric, which a sweeper optimises.
    """
    hydra = HydraConfig.get()
    settings, output_dir = plain(config), Path(hydra.runtime.output_dir)
    check_config(settings)
    if outer_rank() in (None, 0):
        take(output_dir, settings, list(hydra.overrides.task))
    best: float | None = launch("train", settings, output_dir)
    return best


def work(config: dict[str, Any], output_dir: Path) -> float | None:
    """What each process does."""
    rank = int(os.environ.get("RANK", "0"))
    logs.configure(output_dir / ("train.log" if rank == 0 else f"train.rank{rank}.log"), rank=rank)
    data = build_data(config)
    task = build_task(config, data.model_arguments())
    _check_monitor(config["monitor"]["metric"], task)
    resumed = newest(output_dir) if config["resume"] is not None else None
    throughput, callbacks = progress_callbacks(data.batch_size)
    trainer = build_trainer(config, output_dir, callbacks)
    if rank == 0:
        logs.logger.info("run folder: %s", output_dir)
        logs.show(*data.report(), targets_table(task), memory_table(task))
        if resumed:
            logs.logger.info("going on from %s", resumed)
    trainer.fit(task, datamodule=data, ckpt_path=resumed)
    best = next(
        (
            c
            for c in trainer.checkpoint_callbacks
            if isinstance(c, ModelCheckpoint) and c.monitor == config["monitor"]["metric"]
        ),
        None,
    )
    if best is not None and best.best_model_path:
        task.load_trainable(
            FolderCheckpointIO().load_checkpoint(best.best_model_path)["state_dict"], best.best_model_path
        )
    metrics = _measure(trainer, task, data)
    if trainer.is_global_zero:
        _save(config, output_dir, task, data, metrics, throughput)
    return None if best is None or best.best_model_score is None else float(best.best_model_score)


def _check_monitor(metric: str, task: AdapterTask) -> None:
    scores = task.scores["validation"]
    assert isinstance(scores, MetricCollection)
    logged = ["validation/loss", *map(str, scores.keys()), "train/loss", "train/epoch_loss"]
    if metric not in logged:
        hint = did_you_mean(metric, logged)
        raise InputError("E-MONITOR", f"monitor.metric={metric} is not measured.{hint} Possible: {', '.join(logged)}")


def _measure(trainer: lightning.Trainer, task: AdapterTask, data: TaskData) -> dict[str, float]:
    """The best checkpoint's metrics on validation and, where there is one, test."""
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
) -> None:
    folder = output_dir / "adapter"
    save_adapter(task, folder, recipe=recipe(config, data.model_arguments()), metrics=metrics)
    summary = summarise(config, output_dir, task, data, metrics, throughput.seconds_per_step())
    final_report(summary, task, data, output_dir)
