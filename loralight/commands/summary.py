"""The results of a run: ``summary.json``, from which reports are made, and tables for the terminal."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from loralight.adapters.base import trainable
from loralight.artifacts.export import WEIGHTS
from loralight.data import TaskData
from loralight.logs import cut, human, show
from loralight.models.quantisation import as_before
from loralight.models.shards import is_sharded
from loralight.reports.runs import generalisation_gap, read_curve
from loralight.training.early_stopping import stopped_line
from loralight.training.memory import peak_memory
from loralight.training.preflight import num_bytes
from loralight.training.settling import settled_line
from loralight.training.task import AdapterTask

_PACKAGES = ("loralight", "torch", "lightning", "transformers", "datasets", "hydra-core")


def summarise(
    config: dict[str, Any],
    output_dir: Path,
    task: AdapterTask,
    data: TaskData,
    metrics: dict[str, float],
    seconds_per_step: float | None,
    probe: dict[str, float],
) -> dict[str, Any]:
    """Collect a run's results and write them to ``summary.json``.

    Sizes are in bytes, times in seconds. Peak memory is that of the GPU if there is one, else of the process.
    """
    parameters = list(task.model.parameters())
    learns = trainable(task.model)
    splits = sorted({name.partition("/")[0] for name in metrics} & set(data.splits))
    summary = {
        "task": config["names"]["task"],
        "adapter": config["names"]["adapter"],
        "monitored": config["monitor"]["metric"],
        "mode": config["monitor"]["mode"],
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "baseline": {f"{split}/{name}": value for split in splits for name, value in data.baseline(split).items()},
        "linear_probe": probe,
        "generalisation_gap": generalisation_gap(read_curve(output_dir / "metrics.csv")),
        "settled": task.settled,
        "parameters": {
            "trainable": sum(p.numel() for p in learns.values()),
            "total": sum(p.numel() for p in as_before(task.model)),
        },
        "bytes": {
            "adapter": (output_dir / "adapter" / WEIGHTS).stat().st_size,
            "model": num_bytes(parameters),
            "peak_memory": peak_memory(),
        },
        "lr": config["optimizer"].get("lr"),
        "seconds_per_step": seconds_per_step,
        "batch_size": data.batch_size,
        "steps": task.trainer.global_step,
        "stopped": stopped_line(task.trainer),
        "seed": config["seed"],
        "data": data.identity(),
        "device": _device(),
        "processes": task.trainer.world_size,
        "versions": {"python": platform.python_version(), **_versions()},
    }
    file = output_dir / "summary.json"
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def final_report(
    summary: dict[str, Any], task: AdapterTask, data: TaskData, output_dir: Path, commands: Sequence[str]
) -> None:
    """Print the results, a few predictions on rows that were not trained on, and the commands to use next."""
    lines = [summary["stopped"]] if summary["stopped"] else []
    lines += [settled_line(task.settled)] if task.settled else []
    if (gap := summary["generalisation_gap"]) is not None:
        lines.append(f"generalisation gap, the last validation loss less the training loss of its epoch: {gap:.4f}")
    beside = {"linear probe": summary["linear_probe"], "trivial answer": summary["baseline"]}
    show(metrics_table(summary["metrics"], beside), *lines, *behind_lines(summary))
    show(_cost_table(summary))
    # the first process alone cannot compute with weights of which it has a part
    if (examples := data.examples(3)) and not is_sharded(task.model):
        show(_predictions_table(task, examples))
    run = os.path.relpath(output_dir)
    run = run if not run.startswith("..") else str(output_dir)
    adapter = output_dir / "adapter"
    show(
        f"\nadapter: {adapter if run == str(output_dir) else os.path.relpath(adapter)}",
        "\nnext:",
        *(f"  {command}" for command in commands),
    )


def behind_lines(summary: dict[str, Any]) -> list[str]:
    """A warning line for each simpler answer that a run does not beat by the metric that chose its checkpoint."""
    metric, sign = summary["monitored"], 1 if summary["mode"] == "max" else -1
    score, probe, trivial = (summary[kind].get(metric) for kind in ("metrics", "linear_probe", "baseline"))
    lines = []
    if score is not None and probe is not None and sign * round(score, 4) < sign * round(probe, 4):
        lines.append(
            f"caution: {metric} is {score:.4f}, and that of the linear probe {probe:.4f}: adapter=linear_probe gives "
            "it without a step, task.head_start=probe begins there, and optimizer.lr=auto tries other rates"
        )
    if score is not None and trivial is not None and sign * round(score, 4) <= sign * round(trivial, 4):
        lines.append(f"caution: {metric} is {score:.4f}, which is no better than the trivial answer's {trivial:.4f}")
    return lines


def metrics_table(metrics: Mapping[str, float | None], beside: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of a run, each next to the same score of others, such as a linear probe, as far as they have it."""
    beside = {name: scores for name, scores in beside.items() if scores}
    table = Table(title="results", title_justify="left")
    for column in ("metric", "this run", *beside):
        table.add_column(column, justify="left" if column == "metric" else "right")
    # test before validation, scores before losses
    for name, value in sorted(
        metrics.items(), key=lambda item: (item[0][:4] != "test", item[0].endswith("loss"), item)
    ):
        others = (f"{scores[name]:.4f}" if name in scores else "" for scores in beside.values())
        table.add_row(name, "not finite" if value is None else f"{value:.4f}", *others)
    return table


def _cost_table(summary: dict[str, Any]) -> Table:
    trained, total = summary["parameters"]["trainable"], summary["parameters"]["total"]
    size = summary["bytes"]
    table = Table(title="cost", title_justify="left", show_header=False)
    table.add_row("trainable parameters", f"{trained:,} of {total:,} ({trained / total:.2%})")
    table.add_row(
        "adapter on disk",
        f"{human(size['adapter'])}, {size['adapter'] / size['model']:.1%} of the model's {human(size['model'])}",
    )
    table.add_row("peak memory", human(size["peak_memory"]))
    if summary["seconds_per_step"]:
        table.add_row(
            "time per step",
            f"{summary['seconds_per_step'] * 1000:.0f} ms ({summary['batch_size']} rows, {summary['device']})",
        )
    return table


def _predictions_table(task: AdapterTask, examples: list[tuple[Any, str]]) -> Table:
    answers = task.predict([given for given, _ in examples])
    table = Table(title="predictions on rows it has not seen", title_justify="left")
    for column in [*answers[0], "right answer"]:
        table.add_column(column)
    for answer, (_, truth) in zip(answers, examples, strict=True):
        table.add_row(*(_short(value) for value in answer.values()), cut(truth))
    return table


def _short(value: Any) -> str:
    if isinstance(value, list):
        return cut("; ".join(map(_short, value)))
    if isinstance(value, dict):
        if texts := [text for text in value.values() if isinstance(text, str)]:
            return ": ".join(texts)  # a record, such as an entity's type and its words
        best = sorted(value.items(), key=lambda item: -item[1])[:3]
        return ", ".join(f"{name} {number:.3f}" for name, number in best)
    return cut(str(value))


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a clone that was never installed
            continue
    return found
