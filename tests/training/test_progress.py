"""The lines that a run prints of its epochs."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loralight.config.build import build_trainer
from loralight.config.composition import settings_of
from loralight.training import progress
from loralight.training.progress import EpochLines, ProgressBar, Throughput, TimeToGo
from loralight.training.task import AdapterTask


class Trained(AdapterTask):
    epoch_loss = 0.5  # type: ignore[assignment]

    build_model = step = metrics = predict_batch = None  # type: ignore[assignment]


SEVEN = ("loss", "accuracy", "f1", "precision", "recall", "balanced_accuracy", "mcc")


def line_of(names: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> str:
    """What is printed of an epoch whose validation has measured these."""
    trainer: Any = SimpleNamespace(
        callback_metrics={f"validation/{name}": torch.tensor(at / 10) for at, name in enumerate(names)},
        checkpoint_callbacks=[SimpleNamespace(monitor="validation/f1"), SimpleNamespace(monitor="step")],
        max_epochs=3,
        is_global_zero=True,
        current_epoch=0,
        global_step=45,
    )
    task, lines = Trained.__new__(Trained), EpochLines()
    lines.on_train_epoch_start(trainer, task)
    lines.on_validation_end(trainer, task)
    with caplog.at_level("INFO", logger="loralight"):
        lines.on_train_epoch_end(trainer, task)
    return caplog.messages[-1]


def test_a_few_scores_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    told = line_of(SEVEN[:2], caplog)
    assert re.fullmatch(
        r"epoch 1/3, step 45, 0 s: train/loss 0\.5000, validation/loss 0\.0000, validation/accuracy 0\.1000", told
    )


def test_of_many_scores_the_one_that_chooses_stands_with_the_losses_and_the_others_below(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = line_of(SEVEN, caplog).split("\n")
    assert first.endswith("train/loss 0.5000, validation/loss 0.0000, validation/f1 0.2000")
    assert second == "  accuracy 0.1000   precision 0.3000   recall 0.4000   balanced_accuracy 0.5000   mcc 0.6000"


def told_after(
    seconds: tuple[float, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, total: float = 100
) -> list[str]:
    """What is printed of a run of ``total`` steps whose first steps end at these seconds."""
    line, trainer = TimeToGo(", or less"), SimpleNamespace(is_global_zero=True, estimated_stepping_batches=total)
    with caplog.at_level("INFO", logger="loralight"):
        for step, now in enumerate(seconds, start=1):
            monkeypatch.setattr(progress, "perf_counter", lambda now=now: now)
            trainer.global_step = step
            line.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    return caplog.messages


def test_a_long_run_tells_once_how_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # the first step took 50 s, the next ones 10 s: 97 more of them are 16 minutes
    assert told_after((50, 60, 70, 80), monkeypatch, caplog) == ["about 16 minutes of steps to go, or less"]


@pytest.mark.parametrize("total", [20, float("inf")])
def test_a_short_or_endless_run_does_not(
    total: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert told_after((50, 60, 70, 80), monkeypatch, caplog, total=total) == []


@pytest.mark.parametrize(("given", "shown"), [([], True), (["+trainer.enable_progress_bar=false"], False)])
def test_the_bar_can_be_left_out_as_lightning_does(given: list[str], shown: bool, tmp_path: Path) -> None:
    config = settings_of("train", ["trainer=cpu", *given], tmp_path)
    trainer = build_trainer(config, tmp_path, [ProgressBar(Throughput(), 1)])
    assert (trainer.progress_bar_callback is not None) is shown
