"""How many epochs a run takes when nobody says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest

from loralight.adapters import FullFineTuning, Lora
from loralight.training.epochs import Epochs, epochs_for, few_steps, odd_rate


@pytest.mark.parametrize(
    ("steps", "has_head", "expected"),
    [
        (16, True, Epochs(20, 4)),  # 500 rows in batches of 32
        (32, True, Epochs(12, 3)),  # the same in batches of 16: 13 would have 400 steps, but the last is validated
        (38, True, Epochs(12, 3)),
        (134, True, Epochs(3, 1)),
        (16, False, Epochs(3, 1)),  # nothing is new: few rows are soon learned by heart
        (2105, True, Epochs(2, 1)),  # 67,349 rows
        (50_000, False, Epochs(1, 1)),
        (1, True, Epochs(20, 4)),
    ],
)
def test_few_rows_are_repeated_and_many_are_not(steps: int, has_head: bool, expected: Epochs) -> None:
    assert epochs_for(steps, has_head=has_head) == expected


@pytest.mark.parametrize(
    ("steps", "held_out", "expected"),
    [
        (38, 2.5, Epochs(12, 6)),  # 1,200 rows and 3,000 of validation, which take as long as 47 steps
        (16, 0.6, Epochs(20, 4)),
        (16, 2.2, Epochs(20, 5)),
        (4, 10.0, Epochs(20, 10)),
        (235, 0.4, Epochs(3, 1)),
        (235, 10.0, Epochs(3, 1)),  # of three epochs each is validated
    ],
)
def test_a_large_validation_split_is_measured_less_often(steps: int, held_out: float, expected: Epochs) -> None:
    assert epochs_for(steps, has_head=True, held_out=held_out) == expected


@pytest.mark.parametrize("steps", range(1, 200, 7))
def test_the_last_epoch_is_validated(steps: int) -> None:
    chosen = epochs_for(steps, has_head=True)
    assert chosen.number % chosen.validated_every == 0
    assert chosen.number // chosen.validated_every <= 5


def test_the_trainer_is_told_and_so_is_the_user(
    loralight: Callable[..., Any], tiny_run: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny_run if "max_epochs" not in word]
    done = loralight("train", *words, "hydra.run.dir=run", "task.pooling=mean", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert "trainer.max_epochs=auto: 20 epochs of 5 steps, validated every 4" in done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if " epoch " in line]
    assert ["validation/accuracy" in line for line in lines] == 5 * [False, False, False, True]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 100
    assert summary["linear_probe"]["validation/accuracy"] > 0.5


def test_a_linear_probe_is_solved_for_unless_epochs_are_given(
    loralight: Callable[..., Any], tiny_run: list[str], tmp_path: Path
) -> None:
    words = ["adapter=linear_probe", "task.pooling=mean", "logger=csv"]
    auto = [word for word in tiny_run if "max_epochs" not in word]
    for folder, settings, steps in (("solved", auto, 0), ("trained", tiny_run, 5)):
        done = loralight("train", *settings, *words, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert summary["steps"] == steps
        scores = {name: value for name, value in summary["metrics"].items() if name in summary["linear_probe"]}
        assert steps or scores == pytest.approx(summary["linear_probe"])
    (tmp_path / "texts.txt").write_text("a fine film\n")
    answer = loralight("predict", "run=solved", "input=texts.txt")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_epochs": 4}, None),  # of five steps each
        ({"max_epochs": 3}, "the run has 15 optimizer steps, .* by trainer.max_epochs=4 or more"),
        ({"max_epochs": 3, "accumulate_grad_batches": 5}, "the run has 3 optimizer steps, .* by trainer.max_epochs=20"),
        ({"max_epochs": 9, "limit_train_batches": 2}, "the run has 18 optimizer steps"),
        ({"max_epochs": 50, "max_steps": 7}, "the run has 7 optimizer steps, .* by a larger trainer.max_steps"),
        ({"max_epochs": -1}, None),
        ({"max_steps": 20}, None),
        ({"fast_dev_run": True}, None),
    ],
)
def test_a_run_of_too_few_steps_is_told(settings: dict[str, Any], words: str | None) -> None:
    class Rows:
        splits, batch_size = {"train": range(40)}, 8

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **settings
    )
    data: Any = Rows()
    lines = few_steps(trainer, data)
    assert len(lines) == (words is not None)
    assert all(re.search(f"{words}.*, or a smaller data.batch_size$", line) for line in lines)
    data.batch_size, data.splits = 1, {"train": range(5)}
    assert [", or a smaller data.batch_size" in line for line in few_steps(trainer, data)] == [False] * len(lines)


@pytest.mark.parametrize(
    ("adapter", "lr", "steps", "words"),
    [
        (Lora(targets="all"), 1e-3, 20, None),
        (Lora(targets="all"), 5e-3, 400, None),
        (Lora(targets="all"), 1e-2, 400, "Lora may diverge at optimizer.lr=0.01: the method's own rate is 0.001"),
        (Lora(targets="all", lr=2e-2), 2e-2, 400, "may diverge"),  # its own is what the class says
        (Lora(targets="all"), 2e-5, 400, "Lora hardly learns in 400 steps at optimizer.lr=2e-05"),
        (Lora(targets="all"), 2e-5, 4000, None),
        (Lora(targets="all"), 2e-5, 10, None),  # that there are few steps is another line
        (FullFineTuning(), 1e-3, 400, "FullFineTuning may diverge"),
        (FullFineTuning(), 2e-5, 400, None),
    ],
)
def test_a_rate_by_which_nothing_is_learnt_is_told(adapter: Any, lr: float, steps: int, words: str | None) -> None:
    lines = odd_rate(adapter, lr, steps)
    assert len(lines) == (words is not None) and (words or "") in "".join(lines)


def test_a_run_tells_of_its_rate(
    in_process: Callable[..., int], tiny_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny_run if "max_epochs" not in word]
    assert in_process("train", *words, "trainer.max_epochs=4", "optimizer.lr=1e-6", "probe=false") == 0
    assert "caution: Lora hardly learns in 20 steps at optimizer.lr=1e-06" in capsys.readouterr().err
