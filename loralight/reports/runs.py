"""Finished runs, read from their folders as data only, since a folder may be a stranger's."""

import csv
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from loralight.artifacts.run_folder import FORGOTTEN, flat, read_config
from loralight.errors import InputError
from loralight.regular_file import read_regular
from loralight.untrusted import read_json

SUMMARY = "summary.json"
FORGETTING = "forgetting/"
"""What the names of metrics on forgetting begin with."""

_MOST_BYTES = 16 * 2**20  # of a file that is read at once
_DEEPEST = 3  # levels of folders below a named folder in which runs are looked for


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that has ended well.

    Args:
        folder: the run's folder.
        settings: plain values by dotted names.
        summary: see ``summary.json`` in docs/design.md.
        curve: the rows of ``metrics.csv``, numbers by name.
        probe: settings of what measured forgetting, by dotted names.
    """

    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]] = ()
    probe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def monitored(self) -> str:
        """The metric that chose the best checkpoint, such as ``validation/f1``."""
        return str(self.summary.get("monitored") or self.settings.get("monitor.metric", "validation/loss"))

    def score(self, metric: str) -> float | None:
        """A metric of the summary, such as ``test/f1``; None if it was not measured or is not finite."""
        value = self.summary["metrics"].get(metric)
        return float(value) if isinstance(value, int | float) else None

    def number(self, *names: str) -> float | None:
        """A number of the summary, such as ``bytes``, ``adapter``."""
        value: Any = self.summary
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, int | float) else None

    def identity(self, split: str) -> dict[str, str]:
        """The digests of a split's rows, of which an earlier version wrote fewer: as encoded, and of what they ask."""
        data = self.summary.get("data")
        kinds = {kind: data.get(kind) for kind in ("digests", "asked")} if isinstance(data, Mapping) else {}
        return {
            kind: str(found[split]) for kind, found in kinds.items() if isinstance(found, Mapping) and found.get(split)
        }

    @property
    def forgotten(self) -> list[str]:
        """The metrics of what the base could do, as they are after training."""
        names = (name for name in self.summary["metrics"] if name.startswith(FORGETTING))
        return [name for name in names if not name.endswith(("_before", "_off"))]

    @property
    def generalisation_gap(self) -> float | None:
        """See `generalisation_gap`."""
        return generalisation_gap(self.curve)


def of_same_rows(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether one of the digests that two splits both have is equal."""
    return any(one[kind] == other[kind] for kind in one.keys() & other.keys())


def generalisation_gap(curve: Sequence[Mapping[str, float]]) -> float | None:
    """The last validation loss less the mean training loss of the epoch that it ends; None if ``curve`` has not both.

    Args:
        curve: the rows of ``metrics.csv``.
    """
    trained = {row["step"]: row["train/epoch_loss"] for row in curve if {"step", "train/epoch_loss"} <= {*row}}
    held_out = {row["step"]: row["validation/loss"] for row in curve if {"step", "validation/loss"} <= {*row}}
    both = sorted(trained.keys() & held_out.keys())
    return held_out[both[-1]] - trained[both[-1]] if both else None


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs among ``folders`` and below them, each once, in the order of their names.

    Raises:
        InputError: one of ``folders`` is not a folder, or has no finished run in it (``E-RUN``).
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError("E-RUN", f"{folder} is no folder; give those of finished runs, or of a sweep")
        here = list(_runs_below(folder, _DEEPEST))
        if not here:
            raise InputError("E-RUN", f"{folder}: there is no finished run in it (none has a {SUMMARY})")
        found |= {run.resolve(): run for run in here}
    return list(found.values())


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / SUMMARY).exists():
        yield folder
    elif depth:
        inner_folders = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
        for inner in sorted(inner_folders, key=by_number):
            yield from _runs_below(inner, depth - 1)


def by_number(folder: Path) -> list[tuple[int, int, str]]:
    """A sort key by which ``rank-8`` comes before ``rank-16``."""
    parts = re.split(r"(\d+)", folder.name)
    return [(1, int(part), "") if part.isdecimal() and len(part) < 18 else (0, 0, part) for part in parts]


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: the folder is not a finished run's, or its files are damaged (``E-RUN``).
    """
    settings = dict(flat(read_config(folder)))
    try:
        summary = read_json(folder / SUMMARY, _MOST_BYTES)
        _check(summary)
        curve = read_curve(folder / "metrics.csv")
        metrics, probe = _with_forgetting(folder, summary["metrics"], settings)
    except (InputError, OSError, ValueError, csv.Error) as error:
        raise InputError(
            "E-RUN", f"{folder} is no finished run, or is damaged: {str(error).split(': ', 1)[-1]}"
        ) from error
    return FinishedRun(
        folder=folder, settings=settings, summary={**summary, "metrics": metrics}, curve=curve, probe=probe
    )


def _with_forgetting(
    folder: Path, metrics: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's metrics, with forgetting as it was measured last, and the settings of the probe that measured it.

    Raises:
        ValueError: the file that ``loralight evaluate`` has left is damaged.
    """
    if not os.path.lexists(folder / FORGOTTEN):
        return dict(metrics), {name: value for name, value in settings.items() if name.startswith("forgetting.")}
    found = read_json(folder / FORGOTTEN)
    later, probe = (found.get(name) for name in ("metrics", "probe"))
    if not isinstance(later, dict) or not isinstance(probe, dict):
        raise ValueError(f"{FORGOTTEN} has no metrics and probe")
    for name, value in later.items():
        if not name.startswith(FORGETTING) or not isinstance(value, int | float):
            raise ValueError(f"{FORGOTTEN} has a metric {name[:40]!r}")
    return {name: value for name, value in metrics.items() if not name.startswith(FORGETTING)} | later, probe


def _check(summary: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a summary has all fields that reports need."""
    for name, kind in {"task": str, "adapter": str, "metrics": dict, "parameters": dict, "bytes": dict}.items():
        if not isinstance(summary.get(name), kind):
            raise ValueError(f"{SUMMARY} has no {name!r}")
    for name, numbers in {"parameters": ("trainable", "total"), "bytes": ("adapter", "model", "peak_memory")}.items():
        for number in numbers:
            if not isinstance(summary[name].get(number), int | float):
                raise ValueError(f"{SUMMARY} has no number {name}.{number}")


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``, numbers by name; a last line that is still being written is left out."""
    if not file.is_file():
        return []
    text = read_regular(file, _MOST_BYTES).decode("utf-8")
    rows = csv.DictReader(StringIO(text[: text.rfind("\n") + 1]))
    return [{name: number for name, text in row.items() if (number := _number(text)) is not None} for row in rows]


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
