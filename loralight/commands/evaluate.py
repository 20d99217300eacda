"""``loralight evaluate``: a finished run's metrics, on any split or other data, also beside those of the base model."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from loralight import logs
from loralight.adapters.disabled import disabled
from loralight.artifacts.export import load_adapter, no_larger_than_saved, read_recipe
from loralight.artifacts.output import refuse_existing
from loralight.artifacts.peft_format import is_of_peft, peft_adapter
from loralight.artifacts.run_folder import FORGOTTEN, flat, read_config
from loralight.commands.measuring import check_split, measure, measuring, read_data
from loralight.commands.summary import metrics_table
from loralight.config.build import adapter_node, build_probe, build_task, build_trainer, check_config
from loralight.config.composition import plain
from loralight.config.sharding import check_sharding, shards
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.models.trust import trust_of, trusting
from loralight.reports.runs import SUMMARY
from loralight.training.forgetting.watch import Forgetting
from loralight.training.launch import check_processes, launch_without_folder, process_rank, world_size
from loralight.training.task import AdapterTask


def main(config: DictConfig) -> dict[str, float]:
    """The job that Hydra runs: measure in as many processes as asked for. Returns the metrics."""
    logs.configure(rank=process_rank() or 0)
    settings = plain(config)
    output = settings["output"]
    refuse_existing(output)
    check_split(settings["split"])
    check_processes(settings["trainer"])
    check_sharding(settings)
    if shards(settings["trainer"]) and settings["base"]:
        raise InputError("E-FSDP", "base=true measures by whole weights in each process; take trainer=ddp, or leave it")
    metrics: dict[str, float] = launch_without_folder(work, settings)
    if output and process_rank() in (None, 0):
        Path(output).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def work(config: dict[str, Any], _: Path) -> dict[str, float]:
    """Evaluate the run's adapter on the data that ``config`` describes; each process measures its part of the rows."""
    rank = process_rank() or 0
    logs.configure(rank=rank)
    config, task, data, load_ = _read(measuring(config, alone=world_size(config["trainer"]) == 1))
    probe = build_probe(config)
    forgetting = None if probe is None else Forgetting(probe, build_trainer(config, Path(config["run"]), []))
    if forgetting is not None:
        with trusting(**trust_of(config)):
            forgetting.begin(task)
    load_()
    if config["base"]:
        _check_base(task)
    metrics = measure(config, task, data)
    if forgetting is not None:
        forgotten = forgetting.end(task)
        if rank == 0:
            _keep(forgotten, config)
        metrics |= forgotten
    base = _measure_base(config, task, data) if config["base"] else {}
    baseline = {f"{config['split']}/{name}": value for name, value in data.baseline(config["split"]).items()}
    if rank == 0:
        logs.show(metrics_table(metrics, {"base model": base, "trivial answer": baseline}))
    return metrics | {f"base/{name}": value for name, value in base.items()}


def _keep(forgotten: dict[str, float], config: dict[str, Any]) -> None:
    """Save what was forgotten in a finished run's folder, where reports look for it, if it can be written."""
    folder = Path(config["run"])
    if not (folder / SUMMARY).exists():
        return
    probe = dict(flat({"forgetting": config["forgetting"]}))
    finite = {name: score for name, score in forgotten.items() if math.isfinite(score)}
    text = json.dumps({"probe": probe, "metrics": finite}, indent=2) + "\n"
    try:
        building = folder / f".{FORGOTTEN}"
        building.unlink(missing_ok=True)
        with building.open("x", encoding="utf-8") as opened:  # the folder may be a stranger's: no link is followed
            opened.write(text)
        os.replace(building, folder / FORGOTTEN)
    except OSError as error:
        logs.logger.warning("forgetting: %s cannot be written, so that reports will not show it: %s", folder, error)


def _check_base(task: AdapterTask) -> None:
    """Raise ``E-BASE`` if the model without its adapter would answer at random."""
    if fresh := sorted(task.fresh(task.model)):
        raise InputError(
            "E-BASE",
            f"base=true: {fresh[0]} is not in the pretrained weights, so that the base model has no answers to this "
            "task yet. Leave it out, or evaluate the run that this one started from (init=)",
        )


def _measure_base(config: dict[str, Any], task: AdapterTask, data: TaskData) -> dict[str, float]:
    """The metrics of the pretrained model: what it could do before, and should still do if nothing was forgotten."""
    if not task.adapter.starts_at_base:
        with disabled(task.model):
            return measure(config, task, data)
    return measure(config, build_task(config, data.model_arguments()), data)  # also where the base itself was trained


def read_trained(config: dict[str, Any]) -> tuple[dict[str, Any], AdapterTask, TaskData]:
    """A run's config to measure in this process alone, its trained task, and the data that the config describes."""
    check_split(config["split"])
    config, task, data, load_ = _read(measuring(config))
    load_()
    return config, task, data


def _read(config: dict[str, Any]) -> tuple[dict[str, Any], AdapterTask, TaskData, Callable[[], None]]:
    """The same with the task as before training, and what loads the trained weights into it."""
    config, folder, made = _with_adapter(config)
    check_config(config)
    data = read_data(config, made)
    with no_larger_than_saved(folder):
        task = build_task(config, data.model_arguments())
    return config, task, data, partial(load_adapter, task, folder, made)


def _with_adapter(config: dict[str, Any]) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """The config with the saved adapter, the adapter's folder, and its recipe."""
    folder = Path(config["run"])
    if not is_of_peft(folder):
        made, saved = read_recipe(folder / "adapter"), read_config(folder)
        if config["adapter"] == saved["adapter"]:
            config["adapter"] = adapter_node(made)  # a trained adapter may be saved as another kind
        as_trained = {name for name, value in config["task"].items() if value == saved["task"].get(name)}
        config["task"] |= {name: value for name, value in made["task"].get("settled", {}).items() if name in as_trained}
        return config, folder / "adapter", made
    adapter = peft_adapter(folder)[1]
    target = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    node = {"_target_": target, **{f.name: getattr(adapter, f.name) for f in fields(adapter)}}
    return {**config, "adapter": node}, folder, {"task": {"arguments": {}}, "base": {}}
