"""``loralight merge``: a run's model with its adapter merged, and a certificate of how close the two models are."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig

from loralight import logs
from loralight.acceleration.batch_norm_folding import fold_batch_norm_, refuse_without_batch_norm
from loralight.adapters.inject import mergeable
from loralight.artifacts.certificate import (
    CERTIFICATE,
    PROBED,
    certificate_tables,
    compares_with_base,
    difference,
    lost_in_short,
    merge_,
    outputs,
    probe_rows,
)
from loralight.artifacts.export import adapter_folder, read_recipe
from loralight.artifacts.loading import find_device, load
from loralight.artifacts.output import refuse_existing
from loralight.commands.measuring import check_split, measure, measuring, read_data, refuse_another_device
from loralight.config.build import build_trainer, check_config
from loralight.config.composition import plain
from loralight.config.sharding import check_sharding, shards
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.models.dtypes import TOLERANCES, cast_, computing_in, find_dtype
from loralight.models.trust import trust_of
from loralight.training.checkpoint import write_folder
from loralight.training.launch import check_processes, launch_without_folder, process_rank, world_size
from loralight.training.task import AdapterTask
from loralight.version import __version__


def main(config: DictConfig) -> dict[str, Any]:
    """The job that Hydra runs: merge in as many processes as asked for. Returns the certificate."""
    logs.configure(rank=process_rank() or 0)
    settings = plain(config)
    _checked(settings)
    check_processes(settings["trainer"])
    refuse_another_device(settings)
    if shards(settings["trainer"]):
        raise InputError("E-FSDP", "merge writes whole weights, which each process has; take trainer=ddp, or leave it")
    check_sharding(settings)
    certificate: dict[str, Any] = launch_without_folder(work, settings)
    return certificate


def work(config: dict[str, Any], _: Path) -> dict[str, Any]:
    """Merge, measure, and write the model if it is within the tolerance.

    Of several processes each merges the whole model and measures its part of the split; the first one decides for all,
    and writes.
    """
    logs.configure(rank=process_rank() or 0)
    dtype, tolerance, output = _checked(config)
    config = measuring(config, alone=world_size(config["trainer"]) == 1)
    check_config(config)
    made = read_recipe(adapter_folder(config["run"]))
    strategy = _strategy(config)
    task = load(config["run"], base=config["checkpoint"], device=str(strategy.root_device), **trust_of(config))
    _refuse_early(task, config)
    task.accelerations.detach_(task.model)  # the two models themselves are compared
    cast_(task.model, torch.float32)
    data = _data(config, made)
    measured = _merge_and_measure(config, task, data, dtype)
    certificate = {
        "loralight_version": __version__,
        "run": str(config["run"]),
        **{part: made[part]["name"] for part in ("task", "adapter")},
        "settled": task.settled,
        "base": made["base"] | ({"name": config["checkpoint"]} if config["checkpoint"] else {}),
        "dtype": config["dtype"],
        "tolerance": tolerance,
        **measured,
    }
    certificate = strategy.broadcast(certificate)  # on other devices outputs may differ in a bit
    if strategy.is_global_zero:
        logs.show(*certificate_tables(certificate))
    error = math.nan if certificate["outputs"] is None else certificate["outputs"]["relative_error"]
    certificate["within_tolerance"] = error <= tolerance
    if not certificate["within_tolerance"] and not config["force"]:
        # float32 rounds away only about a millionth
        is_narrow = dtype != torch.float32
        why = "Choose a wider dtype (float32)." if is_narrow else "Does the task's step use more than the weights?"
        raise InputError(
            "E-MERGE",
            f"in {config['dtype']} the merged model's outputs are off by a relative {error:.1e}, more than the "
            f"tolerance of {tolerance:.1e}: nothing was written. {why} Or give another tolerance, or force=true",
        )
    if strategy.is_global_zero:
        _write(task, output, certificate)
        logs.show(f"\nmodel: {output}")
    return certificate


def _strategy(config: dict[str, Any]) -> Strategy:
    """This process's place among the others, and its device; the settings then are those to measure there.

    The model is measured in float32 except for its own casts.
    """
    config["trainer"] |= {"precision": "32-true"}
    if world_size(config["trainer"]) == 1:
        device = find_device(config["device"])
        devices = 1 if device.index is None else [device.index]
        config["trainer"] |= {"accelerator": device.type, "devices": devices}
    strategy = build_trainer(config, Path(config["run"]), []).strategy
    strategy.setup_environment()
    return strategy


def _checked(config: dict[str, Any]) -> tuple[torch.dtype, float, Path]:
    """The dtype, tolerance and output folder, after checking these and further settings."""
    output, dtype = Path(config["output"]), find_dtype(config["dtype"])
    refuse_existing(output)
    tolerance = TOLERANCES[dtype] if config["tolerance"] is None else config["tolerance"]
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise InputError("E-TOLERANCE", f"tolerance={tolerance}: give a relative error, such as 1e-3, or null")
    for name in ("force", "fold_batch_norm"):
        if not isinstance(config[name], bool):
            raise InputError("E-CONFIG", f"{name}={config[name]}: give true or false")
    if config["split"] is not None:
        check_split(config["split"])
    return dtype, float(tolerance), output


def _refuse_early(task: AdapterTask, config: dict[str, Any]) -> None:
    """Raise ``E-MERGE`` or ``E-FOLD`` before any long work, if the model cannot be merged or folded as asked."""
    mergeable(task.model)
    if config["fold_batch_norm"]:
        refuse_without_batch_norm(task.model)


def _data(config: dict[str, Any], made: dict[str, Any]) -> TaskData | None:
    """The run's data; None if it cannot be read and the user has set ``force=true``."""
    if config["checkpoint"] and "checkpoint" in config["data"]:
        config["data"]["checkpoint"] = config["checkpoint"]
    try:
        return read_data(config, made)
    except InputError as error:
        if config["force"]:
            return None
        raise InputError(
            "E-MERGE",
            "the run's data, on which the merged model is compared with the adapted one, cannot be read. Give other "
            f"data (data.validation=...), or write the model unmeasured with force=true: {error}",
        ) from error


def _merge_and_measure(
    config: dict[str, Any], task: AdapterTask, data: TaskData | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Merge the task's model in place, in ``dtype``; returns the measured part of the certificate."""
    if data is not None:
        data.suit_(task.model)
    device, rows = task.device, [] if data is None else probe_rows(data)
    needs_base = bool(rows) and data is not None and compares_with_base(task, data, rows[0])
    is_measured = config["split"] is not None and not needs_base
    found: dict[str, Any] = {}
    for state in ("adapted", "merged"):
        if state == "merged":
            lost = merge_(task.model, dtype)
            folded = fold_batch_norm_(task.model) if config["fold_batch_norm"] else 0
            cast_(task.model, dtype)
        if data is None:
            continue
        with computing_in(task.model, next(task.model.parameters()).dtype):
            given = outputs(task, data, rows)
            scores = measure(config, task, data) if is_measured else None
        task.to(device)  # the trainer leaves it on the CPU
        found[state] = given, scores
    measured: dict[str, Any] = {"probe": None, "outputs": None, "metrics": None, "compares_with_base": needs_base}
    if found:
        (before, scored_before), (after, scored_after) = found["adapted"], found["merged"]
        measured["probe"] = {"split": PROBED, "rows": rows}
        measured["outputs"] = difference(before, after)
        if scored_before is not None:
            measured["metrics"] = {"split": config["split"], "adapted": scored_before, "merged": scored_after}
    return {**measured, "update_lost": lost_in_short(lost), "folded_batch_norms": folded}


def _write(task: AdapterTask, output: Path, certificate: dict[str, Any]) -> None:
    task.to("cpu")

    def fill(building: Path) -> None:
        task.save_pretrained(building)
        text = json.dumps(_finite(certificate), indent=2, ensure_ascii=False, allow_nan=False)
        (building / CERTIFICATE).write_text(text + "\n", encoding="utf-8")

    write_folder(output, fill)


def _finite(value: Any) -> Any:
    """``value`` with only values that JSON has: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
