"""`loralight ranks`: the scores of a run at lower ranks."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loralight.commands.ranks import Point, difference_of, least_as_good
from loralight.reports.intervals import Estimate

InProcess = Callable[..., int]


@pytest.fixture(scope="module")
def words(tiny_bert: str, texts: Path) -> list[str]:
    data = ["data=text_classification", f"data.path={texts}", "data.eval_batch_size=4"]
    return [*data, f"model.checkpoint={tiny_bert}", "model.max_length=16", "task.pooling=mean", "trainer=cpu"]


@pytest.fixture(scope="module")
def trained(folder_of_runs: tuple[Path, InProcess], words: list[str]) -> tuple[Path, InProcess]:
    """A run that has learnt something, in ``run``."""
    folder, command = folder_of_runs
    line = [*words, "trainer.max_epochs=6", "data.batch_size=8", "adapter.rank=6", "optimizer.lr=3e-2"]
    assert command("train", *line, "hydra.run.dir=run") == 0
    return folder, command


def test_a_curve_whose_points_are_the_scores_of_adapters_of_that_rank(
    trained: tuple[Path, InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = trained
    assert command("ranks", "run=run", "output=small", "picture=ranks.png", "monitor.metric=validation/loss") == 0
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    curve = {(int(rank), way.strip()): float(score) for rank, way, _, score, _ in rows}
    assert curve.keys() == {(rank, way) for rank in (1, 2, 4, 6) for way in ("alike", "by energy")}
    assert (folder / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert command("evaluate", "run=run", "split=validation", "output=whole.json") == 0
    assert curve[6, "alike"] == pytest.approx(loss_in(folder / "whole.json"), abs=1e-4)
    shutil.copytree(folder / "run", folder / "cut", ignore=shutil.ignore_patterns("adapter"))
    assert command("combine", "runs=[run]", "weights=[1.0]", "rank=2", "output=cut/adapter") == 0
    assert command("evaluate", "run=cut", "split=validation", "output=cut.json") == 0
    assert curve[2, "alike"] == pytest.approx(loss_in(folder / "cut.json"), abs=1e-4)


def loss_in(file: Path) -> float:
    return float(json.loads(file.read_text())["validation/loss"])


def behind(rank: int, mean: float, error: float | None = 0.01, way: str = "alike") -> Point:
    return Point(rank=rank, way=way, energy=1.0, score=0.5, behind=Estimate(mean), error=error)


def test_the_least_rank_is_that_from_which_on_all_are_within_a_standard_error() -> None:
    assert least_as_good([behind(8, 0.0), behind(4, 0.005), behind(2, 0.02), behind(1, 0.0)]) == 4
    assert least_as_good([behind(8, 0.0), behind(4, -0.5), behind(2, 0.02)]) == 4
    assert least_as_good([behind(8, 0.0, None), behind(4, 0.001, None)]) == 8  # nothing tells chance apart
    assert least_as_good([behind(8, 0.5)]) is None
    assert least_as_good([behind(8, 0.0), behind(4, 0.5), behind(4, 0.0, way="by energy")]) == 8


@pytest.mark.parametrize("right", range(280, 380, 7))
def test_a_single_row_lost_is_within_the_standard_error_however_it_is_rounded(right: int) -> None:
    def accuracies(lost: int) -> list[float]:
        """Of 400 rows, then without each of ten groups, in float32 as metrics are; the lost row is in the fourth."""
        rest = [0.9 * right - lost * (group != 3) for group in range(10)]
        return [float(torch.tensor(number) / rows) for number, rows in [(right - lost, 400), *((n, 360) for n in rest)]]

    difference, error = difference_of(accuracies(0), accuracies(1))
    assert difference.mean == pytest.approx(1 / 400, rel=1e-3)
    assert Point(rank=8, way="alike", energy=1.0, score=0.5, behind=difference, error=error).is_as_good


def test_what_cannot_be_is_told(
    trained: tuple[Path, InProcess], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = trained
    (folder / "there").mkdir(exist_ok=True)
    assert command("ranks", "run=run", "output=there") == 2
    assert "E-OUTPUT" in capsys.readouterr().err
    assert command("ranks", "run=run", "split=train") == 2
    assert "E-SPLIT" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command("ranks", "run=run", "picture=other.png") == 2
    assert "E-PACKAGE: a picture needs matplotlib" in capsys.readouterr().err
