"""A run's page while it trains: what it costs, what it tells, and how it closes."""

import json
import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from loralight.errors import InputError
from loralight.reports import live
from loralight.reports.live import FILE, LivePage, mark_failed
from loralight.reports.pictures import Picture
from loralight.stopping import Stopped
from loralight.training.task import AdapterTask

InProcess = Callable[..., int]


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take no time, where the clock does not go by itself."""
    if "in_process" not in request.fixturenames:
        monkeypatch.setattr(live, "lines_by_step", lambda title, _: Picture(title, "<svg></svg>"))


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def trainer_at(step: int, **changes: Any) -> Any:
    """What the page reads of a trainer."""
    return SimpleNamespace(
        global_step=step,
        estimated_stepping_batches=1000,
        callback_metrics={"train/loss": torch.tensor(1 / (1 + step))},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        current_epoch=0,
        max_epochs=3,
        sanity_checking=False,
        **changes,
    )


def status(folder: Path) -> str:
    found = re.search(r'<p id="status"[^>]*>(.*?)</p>', (folder / FILE).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def trained(page: LivePage, clock: Clock, *, steps: int, seconds: float) -> None:
    page.on_train_start(trainer_at(0), SimpleNamespace())
    for step in range(1, steps + 1):
        clock.now += seconds
        page.on_train_batch_end(trainer_at(step), SimpleNamespace())


@pytest.mark.parametrize("cost", [0.01, 0.3])
def test_pages_take_a_hundredth_of_the_time_and_come_seconds_apart(
    cost: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Clock(), []
    draw, write = live.lines_by_step, live.write_whole

    def drawn(*given: Any) -> Any:
        clock.now += cost
        return draw(*given)

    def whole(*given: Any) -> None:
        written.append(clock.now)
        clock.now += cost
        write(*given)

    monkeypatch.setattr(live, "lines_by_step", drawn)
    monkeypatch.setattr(live, "write_whole", whole)
    page = LivePage(tmp_path, title="a run", metric="validation/accuracy", clock=clock)
    with page:
        trained(page, clock, steps=1000, seconds=0.5)
    taken = clock.now - 500
    assert 0 < taken <= 0.01 * clock.now + 1e-9
    assert len(written) > 5 and min(b - a for a, b in pairwise(written[:-1])) >= 3
    assert status(tmp_path) == "finished"
    assert "<svg" in (tmp_path / FILE).read_text()


def test_a_page_while_it_trains_tells_how_far_it_is_and_when_it_is_stale(tmp_path: Path) -> None:
    clock = Clock()
    page = LivePage(tmp_path, title="a <b>run</b>", metric="validation/accuracy", clock=clock)
    trained(page, clock, steps=250, seconds=1.0)
    text = (tmp_path / FILE).read_text()
    assert status(tmp_path) == "running" and "a &lt;b&gt;run&lt;/b&gt;" in text
    assert re.search(r"step 2\d\d of 1000 \(2\d %\)", text) and "<dd>1 of 3</dd>" in text
    assert re.search(r"<dt>time left</dt><dd>0:12:\d\d</dd>", text)
    assert '<meta http-equiv="refresh"' in text and 'data-silence="' in text
    assert not {f"https://{name}" for name in ("cdn", "fonts")} & set(text.split('"')) and "src=" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "finished"),
        (InputError("E-MEMORY", "too <little>"), "failed: E-MEMORY: too &lt;little&gt;"),
        (ValueError("a <b>bug</b>"), "failed: ValueError: a &lt;b&gt;bug&lt;/b&gt;"),
        (Stopped(signal.SIGTERM), "stopped: by SIGTERM"),
        (KeyboardInterrupt(), "stopped: with its command"),
    ],
)
def test_a_page_closes_with_the_end_of_its_run(error: BaseException | None, said: str, tmp_path: Path) -> None:
    clock = Clock()
    page = LivePage(tmp_path, title="a run", metric="validation/accuracy", clock=clock)
    trained(page, clock, steps=200, seconds=1.0)
    assert status(tmp_path) == "running"
    try:
        with page:
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    text = (tmp_path / FILE).read_text()
    assert status(tmp_path) == said
    assert 'http-equiv="refresh"' not in text and "data-silence" not in text and "<span>While" not in text


def test_a_page_whose_process_was_killed_is_closed_by_the_one_that_started_it(tmp_path: Path) -> None:
    mark_failed(tmp_path, ValueError("nothing there"))
    assert not (tmp_path / FILE).exists()
    clock = Clock()
    page = LivePage(tmp_path, title="a run", metric="validation/accuracy", clock=clock)
    trained(page, clock, steps=200, seconds=1.0)
    mark_failed(tmp_path, RuntimeError("process 1 was killed by <SIGKILL>"))
    text = (tmp_path / FILE).read_text()
    assert status(tmp_path) == "failed: process 1 was killed by &lt;SIGKILL&gt;"
    assert 'http-equiv="refresh"' not in text and "data-silence" not in text and "<span>While" not in text
    with page:
        pass
    mark_failed(tmp_path, ValueError("later"))
    assert status(tmp_path) == "finished"


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    folder = tmp_path / "gone"
    with caplog.at_level("INFO"), LivePage(folder, title="a run", metric="m", clock=clock) as page:
        trained(page, clock, steps=300, seconds=1.0)
    assert not folder.exists()
    assert [record.message[:13] for record in caplog.records] == [FILE]  # told once


def test_a_finished_run_has_its_scores_and_samples_and_one_setting_leaves_them_out(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir=run") == 0
    assert in_process("train", *tiny_run, "page=false", "hydra.run.dir=without") == 0
    text = (tmp_path / "run" / FILE).read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert status(tmp_path / "run") == "finished"
    accuracy = summary["metrics"]["test/accuracy"]
    assert f"<dt>test/accuracy</dt><dd>{accuracy:.4f}</dd>" in text
    assert "validation row 0" in text and re.search(r"its answer: (good|bad)", text)
    assert not (tmp_path / "run" / f".{FILE}").exists()
    assert not (tmp_path / "without" / FILE).exists()
    with_page, without = ((tmp_path / run / "metrics.csv").read_bytes() for run in ("run", "without"))
    assert with_page == without


def test_a_run_that_is_told_to_stop_says_how_it_goes_on_and_has_the_whole_curve_then(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AdapterTask.training_step, iter(range(100))

    def told(*given: Any) -> Any:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    line = [*tiny_run, "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    monkeypatch.setattr(AdapterTask, "training_step", told)
    monkeypatch.setattr(live, "_SHARE_AT_END", 1e9)
    assert in_process("train", *line) == 143
    assert status(tmp_path / "run").startswith("stopped: by SIGTERM; loralight train resume=")
    pages: list[LivePage] = []
    begun = LivePage.on_train_start
    monkeypatch.setattr(LivePage, "on_train_start", lambda page, *given: (pages.append(page), begun(page, *given)))
    assert in_process("train", *line) == 0
    assert status(tmp_path / "run") == "finished"
    page = (tmp_path / "run" / live.FILE).read_text()
    assert "3 of 3" in page and "4 of 3" not in page
    assert [step for step, _ in pages[0]._points["train/loss"]][:6] == list(range(6))
    assert next(step for step, _ in pages[0]._points["validation/accuracy"]) == 4
    assert "<svg" in (tmp_path / "run" / FILE).read_text()
