"""Groups of runs as rows: for a terminal, as CSV, Markdown and JSON."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loralight.logs import human
from loralight.reports.groups import Group
from loralight.reports.row_by_row import Pair, RowByRow
from loralight.reports.runs import FinishedRun

_NAMES = ("", "adapter", "settings", "seeds")
_COSTS = ("learns", "adapter file", "peak memory", "ms a step")


def best_of(groups: Sequence[Group], metric: str, *, mode: str) -> Group | None:
    """The group with the best mean; None if no group has a score."""
    scored = [(score.mean, group) for group in groups if (score := group.score(metric)) is not None]
    if not scored:
        return None
    choose = max if mode == "max" else min
    return choose(scored, key=lambda pair: pair[0])[1]


def rows_of(groups: Sequence[Group], metrics: Sequence[str], best: Group | None) -> list[list[str]]:
    """The cells of each group: a star for the best group, settings, scores, costs."""
    rows = []
    for group in groups:
        scores = [str(score) if (score := group.score(metric)) else "" for metric in metrics]
        rows.append(
            ["*" if group is best else "", group.adapter, group.label, str(len(group.runs)), *scores, *_costs(group)]
        )
    return rows


def headings(metrics: Sequence[str]) -> list[str]:
    """The headings of the cells of `rows_of`."""
    return [*_NAMES, *metrics, *_COSTS]


def terminal_table(groups: Sequence[Group], metric: str, best: Group | None, *, title: str) -> Table:
    """The table of one metric for a terminal of 80 columns, without the size of the adapter's file."""
    several = any(len(group.runs) > 1 for group in groups)
    caption = "± half of a 95 % interval over seeds" if several else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    costs = [_COSTS[0], *_COSTS[2:]]
    for heading in (*(["seeds"] if several else []), metric.replace("/", "\n", 1), *map(_broken, costs)):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, row in zip(groups, rows_of(groups, [metric], best), strict=True):
        star, _, _, seeds, score, learns, _, *others = row
        table.add_row(f"{star} {group.name}".strip(), *([seeds] if several else []), score, learns, *others)
    return table


def text_table(rows: Sequence[Sequence[str]], *, title: str) -> Table:
    """Rows of text for a terminal; the first has the headings."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(rows[0]):
        table.add_column(_broken(name, "/"), justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def rows_table(found: RowByRow) -> list[list[str]]:
    """Headings, and for each other group a line on the rows that it and the best group have answered; or nothing."""
    if found.best is None or not found.pairs:
        return []
    better, measure = f"{found.best.name} better", f"difference in {found.kept.measure}"
    heads = ["", "rows", better, "worse", "p", measure, "95 % interval"]
    pairs = [(one.group.name, found.pairs.get(id(one.group))) for one in found.groups]
    return [heads, *([name, *_of_pair(pair)] for name, pair in pairs if pair is not None)]


def _of_pair(pair: Pair) -> list[str]:
    numbers = (f"{pair.p:.3g}", f"{pair.difference:.4f}", f"{pair.low:.4f} to {pair.high:.4f}")
    return [str(pair.num_rows), str(pair.better), str(pair.worse), *numbers]


def _broken(heading: str, at: str = " ") -> str:
    return heading.replace(at, "\n", 1)


def as_markdown(groups: Sequence[Group], metrics: Sequence[str], best: Group | None) -> str:
    """The same table in Markdown."""
    return markdown([headings(metrics), *rows_of(groups, metrics, best)])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first row has the headings; an empty text without rows."""
    lines = [*rows[:1], *([["---"] * len(rows[0])] if rows else []), *rows[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def as_records(runs: Sequence[FinishedRun], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A flat record for each run: its folder, distinguishing settings, metrics and costs."""
    group_of = {id(run): group for group in groups for run in group.runs}
    return [
        {
            "run": str(run.folder),
            "adapter": run.summary["adapter"],
            "settings": group_of[id(run)].label,
            "seed": run.summary.get("seed"),
            **run.summary["metrics"],
            "trainable_parameters": run.summary["parameters"]["trainable"],
            "adapter_bytes": run.summary["bytes"]["adapter"],
            "peak_memory_bytes": run.summary["bytes"]["peak_memory"],
            "seconds_per_step": run.summary.get("seconds_per_step"),
            "steps": run.summary.get("steps"),
        }
        for run in runs
    ]


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV, with a column for each key that any record has."""
    written = StringIO()
    writer = csv.DictWriter(
        written, list(dict.fromkeys(key for record in records for key in record)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(records)
    return written.getvalue()


def _costs(group: Group) -> list[str]:
    learns, total = group.cost("parameters", "trainable"), group.cost("parameters", "total")
    adapter, memory = group.cost("bytes", "adapter"), group.cost("bytes", "peak_memory")
    seconds = group.cost("seconds_per_step")
    return [
        f"{learns / total:.2%}" if learns is not None and total else "",
        "" if adapter is None else human(adapter),
        "" if memory is None else human(memory),
        "" if seconds is None else f"{1000 * seconds:.0f}",
    ]
