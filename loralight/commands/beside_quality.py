"""What methods differ in beside their scores: calibration, forgetting, memory, time and bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loralight.logs import human
from loralight.reports.groups import Group

_FORGETTING, _BEFORE, _OFF = "forgetting/", "_before", "_off"


def rows_beside(groups: Sequence[Group], split: str) -> list[list[str]]:
    """The heading and a row for each group; calibration and forgetting only as far as a run has measured them.

    Args:
        groups: at least one.
        split: whose calibration is meant, such as ``test``.
    """
    measured = {name for group in groups for run in group.runs for name in run.summary["metrics"]}
    forgotten = sorted(name for name in measured if name.startswith(_FORGETTING))
    shown = [name for name in forgotten if not name.endswith((_BEFORE, _OFF))]
    calibration = [name for name in (f"{split}/ece",) if name in measured]
    heading = ["", *calibration, *shown, "adapter file", "peak memory", "training"]
    return [heading, *([group.name, *_scores(group, [*calibration, *shown]), *_costs(group)] for group in groups)]


def table_beside(rows: Sequence[Sequence[str]]) -> Table:
    """The rows for a terminal."""
    table = Table(title="beside quality", title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(rows[0]):
        table.add_column(name.replace("/", "\n", 1) or "run", justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def markdown_beside(rows: Sequence[Sequence[str]]) -> str:
    """The rows in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n" + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _scores(group: Group, metrics: Sequence[str]) -> list[str]:
    found = [(group.score(name), group.score(f"{name}{_BEFORE}")) for name in metrics]
    return [
        "" if now is None else str(now) if before is None else f"{now} (before {before.mean:.4f})"
        for now, before in found
    ]


def _costs(group: Group) -> list[str]:
    adapter, memory = group.cost("bytes", "adapter"), group.cost("bytes", "peak_memory")
    seconds = [_seconds(run.summary) for run in group.runs]
    known = sorted(one for one in seconds if one is not None)
    return [
        "" if adapter is None else human(adapter),
        "" if memory is None else human(memory),
        f"{known[len(known) // 2]:.0f} s" if known else "",
    ]


def _seconds(summary: Mapping[str, Any]) -> float | None:
    """Seconds of a run's steps, without its validations."""
    steps, each = summary.get("steps"), summary.get("seconds_per_step")
    is_known = isinstance(steps, int) and isinstance(each, int | float)
    return steps * each if is_known else None  # type: ignore[operator]
