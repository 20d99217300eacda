"""A comparison of runs, in all forms in which it is shown."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rich.console import RenderableType

from loralight.reports.beside_quality import rows_beside
from loralight.reports.examples import examples
from loralight.reports.groups import check_comparable, direction, grouped, of_one_probe, unknown_rows
from loralight.reports.mistakes import mistakes
from loralight.reports.page import page
from loralight.reports.pictures import pictures
from loralight.reports.promises import PROMISES_CAPTION, promises
from loralight.reports.reliability import reliability
from loralight.reports.row_by_row import RowByRow
from loralight.reports.runs import FinishedRun
from loralight.reports.tables import (
    as_csv,
    as_markdown,
    as_records,
    best_of,
    markdown,
    rows_table,
    terminal_table,
    text_table,
)
from loralight.reports.verdict import margin_together, verdict


class Comparison:
    """Finished runs of one task, side by side.

    Args:
        runs: at least one run.
        metric: the metric that decides which run is best, such as ``test/accuracy``.
        mode: ``max`` or ``min``.
        failures: error messages by the names of jobs that have no result.

    Raises:
        InputError: the runs cannot be compared, see `check_comparable`.
    """

    def __init__(
        self, runs: Sequence[FinishedRun], *, metric: str, mode: str, failures: Mapping[str, str] | None = None
    ) -> None:
        check_comparable(runs, metric)
        self.runs, self._left_out = of_one_probe(runs)
        self.metric, self.mode, self.failures = metric, mode, dict(failures or {})
        self.groups = grouped(self.runs)
        self.best = best_of(self.groups, metric, mode=mode)

    @classmethod
    def of(
        cls, runs: Sequence[FinishedRun], metric: str | None = None, failures: Mapping[str, str] | None = None
    ) -> "Comparison":
        """The comparison by ``metric``, else by the runs' monitored metric: on test rows, if all runs have it there."""
        monitored = runs[0].monitored
        mode = str(runs[0].settings.get("monitor.mode", "min"))
        of_test = monitored.replace("validation/", "test/")
        own = of_test if all(of_test in run.summary["metrics"] for run in runs) else monitored
        if metric is not None and metric not in (own, monitored):
            mode = "max" if direction(metric) > 0 else "min"
        return cls(runs, metric=metric or own, mode=mode, failures=failures)

    @property
    def metrics(self) -> list[str]:
        """The metrics that are shown: the deciding one, and the same metric on other splits."""
        name = self.metric.partition("/")[2]
        measured = {measure for run in self.runs for measure in run.summary["metrics"]}
        other = [measure for measure in sorted(measured) if measure != self.metric and measure.endswith(f"/{name}")]
        return [self.metric, *other]

    @cached_property
    def rows(self) -> RowByRow:
        """The answers that the runs have kept."""
        return RowByRow.of(self.groups, self.best)

    @cached_property
    def promises(self) -> list[list[list[str]]]:
        """LoRA's promises beside full fine-tuning, a table for each group of LoRA's runs."""
        together = margin_together(self.groups, self.metric)
        return promises(self.groups, self.metric, mode=self.mode, together=together)

    @cached_property
    def beside(self) -> list[list[str]]:
        """What groups differ in beside their scores."""
        return rows_beside(self.groups, self.metric.partition("/")[0])

    def verdict(self) -> list[str]:
        """Sentences on the numbers."""
        said = verdict(self.groups, self.best, self.metric, mode=self.mode, pairs=self.rows.pairs) if self.best else []
        said += [*self._left_out, *self.rows.left_out]
        for run in unknown_rows(self.runs, self.metric):
            said.append(f"{run.folder} does not say on which rows it was measured: it is of an earlier version.")
        return said

    def shown(self, title: str = "comparison") -> list[RenderableType]:
        """The tables and the sentences, for a terminal."""
        table = terminal_table(self.groups, self.metric, self.best, title=title)
        failed = [f"failed: {name}: {error}" for name, error in self.failures.items()]
        promised = [text_table(rows, title="LoRA's promises beside full fine-tuning") for rows in self.promises]
        return [table, *failed, "", *self.verdict(), "", text_table(self.beside, title="beside quality"), *promised]

    def write(self, folder: Path, title: str, name: str = "report", *, is_drawn: bool = True) -> list[Path]:
        """Write the comparison as HTML, Markdown, CSV and JSON.

        Args:
            folder: the folder to write to; made if it does not exist.
            title: title of the page.
            name: name of the files, without suffix.
            is_drawn: whether to write a page with pictures.

        Raises:
            ModuleNotFoundError: a page is asked for, but matplotlib or jinja2 is not installed.
        """
        records = as_records(self.runs, self.groups)
        texts = {
            "md": f"{as_markdown(self.groups, self.metrics, self.best)}\n"
            + "".join(f"{line}\n" for line in self.verdict())
            + "".join(f"\n{markdown(table)}" for table in (rows_table(self.rows), self.beside, *self.promises) if table)
            + (f"\n{PROMISES_CAPTION}\n" if self.promises else ""),
            "csv": as_csv(records),
            "json": json.dumps(
                {"metric": self.metric, "mode": self.mode, "runs": records, "failed": self.failures}, indent=2
            )
            + "\n",
        }
        if is_drawn:
            texts["html"] = page(
                self.groups,
                self.metrics,
                self.best,
                title=title,
                verdict=self.verdict(),
                pictures=[*pictures(self.groups, self.metric), *reliability(self.groups, self.rows.groups)],
                failures=self.failures,
                by_rows=rows_table(self.rows),
                beside=self.beside,
                promises=self.promises,
                mistakes=mistakes(self.rows),
                examples=examples(self.rows),
                examples_are_texts=bool(self.rows.groups) and self.rows.kept.kind == "text",
            )
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")
        return [folder / f"{name}.{ending}" for ending in texts]
