"""A stand-in for training in other processes: a run leaves at once what a finished run leaves."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from loralight.config.composition import settings_of
from loralight.config.own_data import with_own_data

_VARIED = {"optimizer.lr": float, "seed": int}
SUMMARY: dict[str, Any] = {
    "task": "text_classification",
    "monitored": "validation/accuracy",
    "parameters": {"trainable": 10, "total": 1000},
    "bytes": {"adapter": 40, "model": 4000, "peak_memory": 10**6},
    "steps": 5,
    "seconds_per_step": 0.4,
}
"""What all summaries have in common."""


def leave_run(
    folder: Path, words: Sequence[str], settings: Mapping[str, Any], metrics: Mapping[str, float], *, steps: int = 5
) -> None:
    """Write the files of a finished run."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*words]))
    found = {
        "adapter": settings["names"]["adapter"],
        "metrics": dict(metrics),
        "seed": settings["seed"],
        "steps": steps,
    }
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **found}))


def settings_of_run(config_name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """`settings_of`, which takes a fifth of a second, once for all rates and seeds."""
    given = {name: kind(word.partition("=")[2]) for word in words for name, kind in _VARIED.items() if _is(word, name)}
    others = [word for word in words if not any(_is(word, name) for name in (*_VARIED, "hydra.run.dir"))]
    settings = copy.deepcopy(_settings(config_name, tuple(with_own_data(others))))
    if "optimizer.lr" in given:
        settings["optimizer"]["lr"] = given["optimizer.lr"]
    for node in (settings, settings["task"], settings["data"]):
        node["seed"] = given.get("seed", 0)
    return settings


def _is(word: str, name: str) -> bool:
    return word.partition("=")[0] == name


@cache
def _settings(config_name: str, words: tuple[str, ...]) -> dict[str, Any]:
    return settings_of(config_name, list(words), Path("run"))
