"""``loralight evaluate``: a finished run's metrics, on any split or other data."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from loralight import logs
from loralight.build import build_data, build_task, build_trainer, check_config
from loralight.composition import plain
from loralight.errors import InputError
from loralight.export import load_adapter, read_recipe
from loralight.peft_format import is_of_peft, peft_adapter
from loralight.progress import progress_callbacks
from loralight.summary import metrics_table


def main(config: DictConfig) -> dict[str, float]:
    """The job that Hydra runs. Returns the metrics."""
    logs.configure()
    settings = plain(config)
    output = settings["output"]
    if output and Path(output).exists():
        raise InputError("E-OUTPUT", f"output={output}: the file exists, and nothing is overwritten; choose another")
    metrics = work(settings)
    if output:
        Path(output).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def work(config: dict[str, Any]) -> dict[str, float]:
    """Evaluate the run's adapter on the data that ``config`` describes."""
    if config["split"] not in ("validation", "test"):
        raise InputError("E-SPLIT", f"split={config['split']}: choose validation or test")
    config, folder, made = _with_adapter(config)
    config = {
        **config,
        "callbacks": {},
        "logger": {},
        "trainer": {**config["trainer"], "devices": 1, "strategy": "auto"},
    }
    check_config(config)
    # The data is encoded as in training: what it told the task then (label names in their order) it is told now
    told = {name: value for name, value in made["task"]["arguments"].items() if name not in config["task"]}
    config["data"] |= {name: value for name, value in told.items() if name in config["data"]}
    data = build_data(config)
    if config["split"] not in data.splits:
        raise InputError(
            "E-SPLIT", f"split={config['split']}: the data has {', '.join(data.splits)}; give data.{config['split']}="
        )
    task = build_task(config, data.model_arguments())
    load_adapter(task, folder, made)
    trainer = build_trainer(config, Path(config["run"]), progress_callbacks(data.batch_size)[1])
    measure = trainer.test if config["split"] == "test" else trainer.validate
    metrics = {name: float(value) for name, value in measure(task, datamodule=data, verbose=False)[0].items()}
    baseline = {f"{config['split']}/{name}": value for name, value in data.baseline(config["split"]).items()}
    logs.show(metrics_table(metrics, baseline))
    return metrics


def _with_adapter(config: dict[str, Any]) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """The config, with the adapter in the folder if that is one of PEFT's; the folder; its recipe."""
    folder = Path(config["run"])
    if not is_of_peft(folder):
        return config, folder / "adapter", read_recipe(folder / "adapter")
    adapter = peft_adapter(folder)[1]
    target = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    node = {"_target_": target, **{f.name: getattr(adapter, f.name) for f in fields(adapter)}}
    return {**config, "adapter": node}, folder, {"task": {"arguments": {}}, "base": {}}
