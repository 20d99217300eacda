"""Early stopping: on a plateau that is no accident of few rows, for good, and told."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralight.training import EarlyStopping

InProcess = Callable[..., int]
STILL = ["callbacks=early_stopping", "optimizer.lr=1e-12", "task.head_lr=null", "probe=false", "trainer.max_epochs=20"]
"""A run whose score stays what it is; an epoch has five steps."""


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def test_a_run_stops_on_a_plateau_for_good_and_says_so(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = "callbacks.early_stopping.patience_steps=20"
    assert in_process("train", *tiny_run, *STILL, short, "hydra.run.dir=run") == 0
    score = summary(tmp_path / "run")["metrics"]["validation/accuracy"]
    told = f"stopped at epoch 5 of 20: for 4 validations validation/accuracy did not rise above {score:.4f}"
    for text in (capsys.readouterr().out, (tmp_path / "run" / "train.log").read_text()):
        assert told in " ".join(text.split())
    assert summary(tmp_path / "run")["stopped"] == told
    (best,) = (tmp_path / "run" / "checkpoints" / "best").iterdir()
    assert best.name == "epoch=0-step=5.ckpt"
    assert in_process("train", "resume=run") == 0
    assert (found := summary(tmp_path / "run"))["steps"] == 25 and found["stopped"] == told
    assert "epoch 6" not in capsys.readouterr().err


def test_a_run_that_goes_on_to_its_end_says_nothing(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> None:
    short = ["trainer.max_epochs=2", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.patience_steps=5"]
    assert in_process("train", *tiny_run, *STILL, *short, "hydra.run.dir=run") == 0
    assert (found := summary(tmp_path / "run"))["steps"] == 10 and found["stopped"] is None


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, 7),  # an epoch of 15 steps
        ({"num_training_batches": 500}, 3),
        ({"accumulate_grad_batches": 3}, 20),
        ({"check_val_every_n_epoch": 4}, 3),
        ({"val_check_interval": 0.2}, 34),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, 20),
    ],
)
def test_validations_without_a_better_score_are_at_least_a_hundred_steps(
    trainer: dict[str, Any], expected: int
) -> None:
    usual = {"num_training_batches": 15, "accumulate_grad_batches": 1}
    given: Any = SimpleNamespace(**{**usual, "val_check_interval": 1.0, "check_val_every_n_epoch": 1, **trainer})
    callback = EarlyStopping(monitor="validation/f1", mode="max", patience=3, patience_steps=100)
    for _ in range(2):  # of a resumed run too
        callback.on_train_start(given, given)
        assert callback.patience == expected
