"""Runs that differ only in their seed are one group: a row of a report, a point of a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from loralight.artifacts.run_folder import read_overrides
from loralight.errors import InputError, did_you_mean
from loralight.reports.intervals import Estimate, estimate
from loralight.reports.runs import FORGETTING, FinishedRun, of_same_rows

_NO_DIFFERENCE = (
    *("seed", "*.seed", "resume", "auto_batch", "names.*", "page", "probe", "forgetting*", "logger.*"),
    *("callbacks.*.dirpath", "data.num_workers", "trainer.profiler*"),
)
"""Settings in which runs of one group may differ: seeds, places, output."""
_NO_LABEL = ("seed", "logger", "resume", "adapter", "task")
"""Names in a command line that do not distinguish runs, or have a column of their own."""
_UNUSED = ("optimizer.", "optimizer=", "scheduler.", "scheduler=")
"""The beginnings of words that a run without steps does not use, such as a linear probe's that is solved for."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with equal settings.

    Args:
        adapter: the name of the adapter's file in ``conf/adapter``.
        label: overrides on the group's command lines that not all groups have.
        runs: runs with different seeds.
    """

    adapter: str
    label: str
    runs: Sequence[FinishedRun]

    @property
    def name(self) -> str:
        return f"{self.adapter} {self.label}".strip()

    def score(self, metric: str) -> Estimate | None:
        """The mean of a metric over seeds, with its interval; None unless every run has the metric."""
        values = [run.score(metric) for run in self.runs]
        return estimate([value for value in values if value is not None]) if None not in values and values else None

    def cost(self, *names: str) -> float | None:
        """The median over seeds of a number of the summary, such as ``bytes``, ``adapter``."""
        found = [number for run in self.runs if (number := run.number(*names)) is not None]
        return median(found) if found else None

    def by_seed(self, metric: str) -> dict[int | None, float]:
        """The score of each seed that has one."""
        scores = {run.summary.get("seed"): run.score(metric) for run in self.runs}
        return {seed: score for seed, score in scores.items() if score is not None}

    def ahead_of(self, other: "Group", metric: str) -> Estimate | None:
        """The mean difference between runs with equal seeds, with its interval; None if the groups share no seed."""
        mine, theirs = self.by_seed(metric), other.by_seed(metric)
        differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
        return estimate(differences) if differences else None


def grouped(runs: Sequence[FinishedRun]) -> list[Group]:
    """Runs in groups, in the order of each group's first run."""
    found: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    words = [_words(members[0]) for members in found.values()]
    common = set(words[0]).intersection(*words)
    # a probe that was solved for has no epochs, so that their number does not distinguish those that all others have
    trained = [set(one) for one, runs in zip(words, found.values(), strict=True) if runs[0].number("steps") != 0]
    if trained:
        common |= {word for word in set.intersection(*trained) if word.startswith("trainer.")}
    labels = [" ".join(word for word in one if word not in common) for one in words]
    groups = [
        Group(adapter=members[0].summary["adapter"], label=label, runs=members)
        for label, members in zip(labels, found.values(), strict=True)
    ]
    return [_told_apart(group, groups) for group in groups]


def direction(metric: str) -> int:
    """1 if a higher score is better, else -1."""
    return -1 if metric.rpartition("/")[2] in ("loss", "perplexity", "ece") else 1


def check_comparable(runs: Sequence[FinishedRun], metric: str) -> None:
    """Refuse runs whose scores cannot be compared.

    Raises:
        InputError: the runs are of several tasks, or were measured on different rows (``E-COMPARE``), or no run has the
            metric (``E-MONITOR``).
    """
    first, split = runs[0], metric.partition("/")[0]
    measured = sorted({name for run in runs for name in run.summary["metrics"]})
    if not any(metric in run.summary["metrics"] for run in runs):
        hint = did_you_mean(metric, measured)
        raise InputError("E-MONITOR", f"metric={metric} is in none of the runs.{hint} Possible: {', '.join(measured)}")
    for run in runs[1:]:
        if run.summary["task"] != first.summary["task"]:
            raise InputError(
                "E-COMPARE",
                f"{first.folder} is of task {first.summary['task']}, {run.folder} of {run.summary['task']}: compare "
                "runs of one task",
            )
        one, other = first.identity(split), run.identity(split)
        if one and other and not of_same_rows(one, other):
            raise InputError(
                "E-COMPARE",
                f"{first.folder} and {run.folder} were measured on different {split} rows: their scores say nothing "
                "about each other. Compare runs on the same data",
            )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of settings, beside seeds, places and output, in which two runs differ."""
    differ = (name for name in {**one, **other} if one.get(name) != other.get(name))
    return [name for name in differ if not _is_any(name, _NO_DIFFERENCE)]


def of_one_probe(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The runs, with forgetting only of those that measured it as the first one did; and sentences on the others."""
    first = next((run for run in runs if run.forgotten), None)
    kept, left_out = [], []
    for run in runs:
        if first is not None and run.forgotten and run.probe != first.probe:
            differ = (name for name in {**run.probe, **first.probe} if run.probe.get(name) != first.probe.get(name))
            left_out.append(
                f"Forgetting of {run.folder} is left out: it was measured by other {', '.join(differ)} than that of "
                f"{first.folder}."
            )
            others = {name: one for name, one in run.summary["metrics"].items() if not name.startswith(FORGETTING)}
            run = replace(run, summary={**run.summary, "metrics": others})
        kept.append(run)
    return kept, left_out


def unknown_rows(runs: Iterable[FinishedRun], metric: str) -> list[FinishedRun]:
    """The runs whose summary does not say on which rows they were measured: those of an earlier version."""
    return [run for run in runs if not run.identity(metric.partition("/")[0])]


def _key(run: FinishedRun) -> tuple[Any, ...]:
    kept = {name: value for name, value in run.settings.items() if not _is_any(name, _NO_DIFFERENCE)}
    return (run.summary["adapter"], *sorted((name, repr(value)) for name, value in kept.items()))


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _words(run: FinishedRun) -> list[str]:
    """The overrides on a run's command line, without those that set its folder, its seed or a column's value."""
    said = [word.lstrip("+") for word in read_overrides(run.folder)]
    unused = _UNUSED if run.number("steps") == 0 else ()
    no_label = ("hydra.", "--", "forgetting", *unused, *(f"{name}=" for name in _NO_LABEL))
    return [word for word in said if not word.startswith(no_label)]


def _told_apart(group: Group, groups: Sequence[Group]) -> Group:
    """The group; if another group has the same name, with the differing settings added to its label."""
    twins = [other for other in groups if other is not group and other.name == group.name]
    if not twins:
        return group
    mine = group.runs[0].settings
    differ = [
        f"{name}={value}"
        for name, value in mine.items()
        if not _is_any(name, _NO_DIFFERENCE) and any(twin.runs[0].settings.get(name) != value for twin in twins)
    ]
    return Group(adapter=group.adapter, label=" ".join([group.label, *differ[:4]]).strip(), runs=group.runs)
