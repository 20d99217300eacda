"""A page of a run while it trains: progress, curves, samples, memory. No server is needed: a browser reloads it."""

import base64
import hashlib
import html
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import lightning
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from loralight.data import TaskData
from loralight.errors import InputError
from loralight.logs import human, logger
from loralight.regular_file import read_regular
from loralight.reports.answers import answer_of
from loralight.reports.examples import Example, Given, marked, said, shown
from loralight.reports.page import render
from loralight.reports.pictures import Picture, lines_by_step
from loralight.reports.runs import read_curve
from loralight.stopping import Stopped
from loralight.training.answers import answers_of_rows
from loralight.training.checkpoint import MANIFEST
from loralight.training.memory import in_use, peak_memory
from loralight.training.task import AdapterTask
from loralight.untrusted import read_json_lines

FILE = "progress.html"
SAMPLES = "samples.jsonl"
"""A line for each validation, with ``samples``: mappings of ``prompt``, ``written`` and ``reference``."""

SHARE = 0.01
"""Most of a run's time that its page takes while it trains."""
_SHARE_AT_END = 0.05  # of a run that ends before it has pictures
_PAUSE = 3.0  # seconds between two pages, or two points of a curve at first
_SILENCE = 120.0  # seconds after which a page that was not written again says so
_MOST_POINTS = 400
_MOST_SAMPLES = 5
_MOST_BYTES = 2**22

_SCRIPT = """
const written = document.querySelector("time"), limit = Number(document.body.dataset.silence);
if (limit && Date.now() - Date.parse(written.dateTime) > 1000 * limit) document.getElementById("stale").hidden = false;
written.textContent = new Date(written.dateTime).toLocaleString();
"""
_ALLOWED = "sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_STATUS = re.compile(r'<p id="status" class="running">.*?</p>', re.DOTALL)
_ONLY_WHILE_RUNNING = re.compile(r'<meta http-equiv="refresh"[^>]*>|data-silence="\d+"|<span>While .*?</span>')


class LivePage(lightning.Callback):
    """Writes ``progress.html`` into a run's folder, in the first process alone; a context that ends with the run.

    A page is written as a whole, at most every three seconds, and only if all pages together have taken no more than
    their share of the run's time: one half is for pages, the other for pictures, so that neither keeps the other out.
    Nothing that goes wrong with it ends the run.

    Args:
        folder: the run's folder.
        title: title of the page.
        metric: the monitored metric, of which there is a curve.
        clock: tells seconds.
    """

    def __init__(self, folder: Path, *, title: str, metric: str, clock: Callable[[], float] = perf_counter) -> None:
        self._folder, self._title, self._metric, self._clock = folder, title, metric, clock
        self._began = clock()
        self._next, self._pause = self._began, _PAUSE
        self._spent = {"page": 0.0, "pictures": 0.0}
        # seconds that one takes, at first with the imports that it needs
        self._costs = {"page": _of_import("jinja2", 0.1), "pictures": _of_import("matplotlib", 0.6)}
        self._points: dict[str, list[tuple[float, float]]] = {}
        self._pictures: list[Picture] = []
        self._samples: list[Example] = []
        self._scores: dict[str, float] = {}
        self._facts: dict[str, str] = {}
        self._has_told = False
        self._progress = (0, 0)
        self._from = (0, 0.0)  # the step at which this process began, and when

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._facts.pop("time left", None)
        if error is None:
            self._write("finished", "")
        elif isinstance(error, Exception):
            self._write("failed", str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
        else:
            by = str(error).removeprefix("stopped ") if isinstance(error, Stopped) else "with its command"
            saved = any(self._folder.glob(f"checkpoints/*/*/{MANIFEST}"))
            self._write("stopped", by + (f"; loralight train resume={self._folder} goes on with it" if saved else ""))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._from = (trainer.global_step, self._clock())
        if trainer.global_step:
            self._points = _earlier(self._folder, trainer.global_step)
        self._tick(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        self._tick(trainer, in_step=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._safely(lambda: self._note(trainer, self._clock(), in_step=False))

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, _: BaseException) -> None:
        self._safely(lambda: self._note(trainer, self._clock(), in_step=False))

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self._samples = self._safely(lambda: _answered(trainer, pl_module, outputs, batch)) or self._samples
        self._tick(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._scores = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        for name, value in self._scores.items():
            if name.startswith("validation/") and trainer.state.fn == TrainerFn.FITTING:
                self._points.setdefault(name, []).append((trainer.global_step, value))
        self._samples = self._safely(lambda: _written(self._folder)) or self._samples
        self._tick(trainer)

    def on_test_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        self._tick(trainer)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._scores |= {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}

    def _tick(self, trainer: lightning.Trainer, *, in_step: bool = False) -> None:
        """Note the present numbers, and write a page, if it is time to."""
        now = self._clock()
        if now < self._next or trainer.sanity_checking:
            return
        self._next = now + self._pause
        self._safely(lambda: self._note(trainer, now, in_step=in_step))
        self._spent["page"] += self._clock() - now
        if self._is_time_for("page", SHARE, times=2):  # one page, as one drawing, is left for the end
            self._write("running", "")

    def _note(self, trainer: lightning.Trainer, now: float, *, in_step: bool) -> None:
        self._facts["time so far"] = _duration(now - self._began)
        self._facts["memory"] = f"{human(in_use())} in this process, {human(peak_memory())} at the peak"
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step, (first, since), total = trainer.global_step, self._from, trainer.estimated_stepping_batches
        self._progress = (step, int(total) if total < float("inf") else 0)
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or -1
        self._facts["epoch"] = f"{min(epoch, last)} of {last}" if last > 0 else f"{epoch}"  # Lightning ends one further
        if step > first:
            pace = (now - since) / (step - first)
            self._facts["a step"] = f"{1000 * pace:.0f} ms, validations included"
            self._facts["time left"] = _duration(pace * (total - step)) if self._progress[1] else ""
        # outside of a step, other processes might have to compute the metrics too
        loss = trainer.callback_metrics.get("train/loss") if in_step else None
        if loss is not None:  # reading it waits for a GPU
            self._add("train/loss", step, float(loss))

    def _add(self, name: str, step: int, value: float) -> None:
        """Add a point to a curve; of too many points every second is dropped, and fewer are added from then on."""
        points = self._points.setdefault(name, [])
        points.append((step, value))
        if len(points) > _MOST_POINTS:
            del points[::2]
            self._pause *= 2

    def _is_time_for(self, part: str, share: float, *, times: int = 1) -> bool:
        return self._spent[part] + times * self._costs[part] <= share / 2 * (self._clock() - self._began)

    def _write(self, state: str, message: str) -> None:
        """Write the page, with new pictures if there is time for them."""
        ends = state != "running"
        share = _SHARE_AT_END if ends and not self._pictures else SHARE
        if self._is_time_for("pictures", share, times=1 if ends else 2):
            with self._timing("pictures"):
                self._pictures = self._safely(self._drawn) or self._pictures
        with self._timing("page"):
            self._safely(lambda: write_whole(self._folder / FILE, self._page(state, message)))

    @contextmanager
    def _timing(self, part: str) -> Iterator[None]:
        begun = self._clock()
        yield
        self._costs[part] = self._clock() - begun
        self._spent[part] += self._costs[part]

    def _drawn(self) -> list[Picture]:
        names = dict.fromkeys(("loss", self._metric.rpartition("/")[2]))
        found = {name: [(key, self._points.get(key, [])) for key in _curves_of(name)] for name in names}
        return [lines_by_step(name, lines) for name, lines in found.items() if any(points for _, points in lines)]

    def _page(self, state: str, message: str) -> str:
        every = max(self._pause, 2 * self._costs["page"] / SHARE)
        return render(
            "live.html.jinja",
            title=self._title,
            state=state,
            message=message[:2000],
            reload=round(min(every, 60.0)),
            silence=round(max(_SILENCE, 4 * every)),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            script=_SCRIPT,
            allowed=_ALLOWED,
            done=self._progress[0],
            total=self._progress[1],
            facts={name: text for name, text in self._facts.items() if text},
            scores=sorted(self._scores.items()),
            pictures=self._pictures,
            samples=self._samples,
        )

    def _safely(self, made: Callable[[], Any]) -> Any:
        """What ``made`` returns, or None if it fails: a page is not worth a run."""
        try:
            return made()
        except Exception as error:
            if not self._has_told:
                logger.info("%s is not as it should be: %s: %s", FILE, type(error).__name__, error)
            self._has_told = True
            return None


def write_whole(file: Path, text: str) -> None:
    """Write a file so that a reader finds it whole, before or after; a folder that is gone is not made again."""
    building = file.with_name(f".{file.name}")
    building.write_text(text, encoding="utf-8")
    os.replace(building, file)


def mark_failed(folder: Path, error: BaseException) -> None:
    """Have a page say that the run failed, if its process was ended before it could."""
    file = folder / FILE
    with suppress(OSError, ValueError):
        text = read_regular(file, _MOST_BYTES).decode("utf-8")
        said_now = f'<p id="status" class="failed">failed: {html.escape(str(error)[:2000])}</p>'
        marked, count = _STATUS.subn(lambda _: said_now, text)
        if count == 1:
            write_whole(file, _ONLY_WHILE_RUNNING.sub("", marked))


def _of_import(package: str, seconds: float) -> float:
    """The seconds that something takes at first, most of which are the import of a package."""
    return seconds / 5 if package in sys.modules else seconds


def _curves_of(name: str) -> list[str]:
    return [f"train/{name}", f"validation/{name}"]


def _earlier(folder: Path, step: int) -> dict[str, list[tuple[float, float]]]:
    """The curves of a run up to the step at which it is resumed, from the files that it has left."""
    found: dict[str, dict[float, float]] = {}
    for file in sorted(folder.glob("metrics.*.csv"), key=lambda file: file.stat().st_mtime):
        with suppress(OSError, ValueError):
            for row in read_curve(file):
                for name, value in row.items():
                    if "/" in name and row.get("step", step) < step:
                        found.setdefault(name, {})[row["step"]] = value
    return {name: sorted(points.items())[-_MOST_POINTS:] for name, points in found.items()}


def _answered(
    trainer: lightning.Trainer, task: AdapterTask, outputs: Mapping[str, Tensor], batch: Any
) -> list[Example]:
    """The first rows of a batch of validation, as the task answers them."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, TaskData):
        return []
    rows = data.rows_of("validation", 0)
    if (found := answers_of_rows(task, batch, outputs, len(rows))) is None:
        return []
    made = []
    for row, given, right in zip(rows[:_MOST_SAMPLES], found.given, found.right, strict=False):
        line = {"given": given, "right": right, "input": data.shown("validation", row)}
        answer = answer_of(line, found.kind, frozenset(found.labels))
        words = answer.input
        one = Given(said(answer.given, words), marked(answer), ())
        made.append(Example(f"validation row {row}", shown(words), said(answer.right, words), [one]))
    return made


def _written(folder: Path) -> list[Example]:
    """The texts that the model wrote at the last validation."""
    file = folder / SAMPLES
    if not file.is_file():
        return []
    samples: Sequence[Mapping[str, str]] = read_json_lines(file, _MOST_BYTES)[-1]["samples"]
    return [
        Example("", shown(one["prompt"]), said(one["reference"], None), [Given(said(one["written"], None), "", ())])
        for one in samples[:_MOST_SAMPLES]
    ]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
