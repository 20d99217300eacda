"""What methods differ in beside their scores: calibration, forgetting, memory, time and bytes."""

from collections.abc import Sequence

from loralight.logs import human
from loralight.reports.groups import Group
from loralight.reports.runs import FinishedRun


def rows_beside(groups: Sequence[Group], split: str) -> list[list[str]]:
    """The heading and a row for each group; calibration and forgetting only as far as a run has measured them.

    Args:
        groups: at least one.
        split: whose calibration is meant, such as ``test``.
    """
    measured = {name for group in groups for run in group.runs for name in run.summary["metrics"]}
    forgotten = sorted({name for group in groups for run in group.runs for name in run.forgotten})
    calibration = [name for name in (f"{split}/ece",) if name in measured]
    heading = ["", *calibration, *forgotten, "adapter file", "peak memory", "training"]
    return [heading, *([group.name, *_scores(group, [*calibration, *forgotten]), *_costs(group)] for group in groups)]


def _scores(group: Group, metrics: Sequence[str]) -> list[str]:
    found = [(group.score(name), group.score(f"{name}_before")) for name in metrics]
    return [
        "" if now is None else str(now) if before is None else f"{now} (before {before.mean:.4f})"
        for now, before in found
    ]


def _costs(group: Group) -> list[str]:
    adapter, memory = group.cost("bytes", "adapter"), group.cost("bytes", "peak_memory")
    seconds = [_seconds(run) for run in group.runs]
    known = sorted(one for one in seconds if one is not None)
    return [
        "" if adapter is None else human(adapter),
        "" if memory is None else human(memory),
        f"{known[len(known) // 2]:.0f} s" if known else "",
    ]


def _seconds(run: FinishedRun) -> float | None:
    """Seconds of a run's steps, without its validations."""
    steps, each = run.number("steps"), run.number("seconds_per_step")
    return None if steps is None or each is None else steps * each
