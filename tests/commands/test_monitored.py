"""The metric that chooses the best checkpoint, where the data decides it: all commands go by the same one."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralight.commands.tuning.plan import Plan
from loralight.config.build import with_metric
from loralight.config.composition import settings_of
from loralight.reports.comparison import Comparison
from loralight.reports.runs import read_run

InProcess = Callable[..., int]
OWN = "average_precision"


@pytest.fixture(scope="module")
def words(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run on rows of several labels."""
    folder = tmp_path_factory.mktemp("several")
    names = ["film", "food", "town"]
    for split, count in {"train": 64, "validation": 24, "test": 24}.items():
        labels = [[name for bit, name in enumerate(names) if number >> bit & 1] for number in range(count)]
        lines = [{"text": f"of {' and '.join(one)} {number}", "label": one} for number, one in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    of_data = ["data=text_classification", f"data.path={folder}", "data.batch_size=8", "model.max_length=16"]
    return [*of_data, f"model.checkpoint={tiny_bert}", "task.pooling=mean", "trainer=cpu"]


@pytest.fixture(scope="module")
def ran(folder_of_runs: tuple[Path, InProcess], words: list[str]) -> tuple[Path, InProcess]:
    """A run of which the worst epoch is kept, in ``run``."""
    folder, command = folder_of_runs
    line = [*words, "trainer.max_epochs=3", "optimizer.lr=1e-2", "monitor.mode=min"]
    assert command("train", *line, "hydra.run.dir=run") == 0
    return folder, command


def test_of_several_labels_a_row_average_precision_chooses_the_checkpoint(ran: tuple[Path, InProcess]) -> None:
    run = ran[0] / "run"
    with (run / "metrics.csv").open() as file:
        scores = [float(score) for row in csv.DictReader(file) if (score := row[f"validation/{OWN}"])][:3]
    (best,) = (run / "checkpoints" / "best").iterdir()
    assert scores.index(min(scores)) == 0 and best.name.startswith("epoch=0-")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["monitored"] == f"validation/{OWN}"
    assert summary["metrics"][f"validation/{OWN}"] == pytest.approx(min(scores), abs=1e-6)
    assert summary["baseline"][f"test/{OWN}"] == pytest.approx(0.5, abs=0.01)


def test_a_report_and_a_curve_of_ranks_go_by_it(
    ran: tuple[Path, InProcess], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder, command = ran
    comparison = Comparison.of([read_run(folder / "run")])
    assert (comparison.metric, comparison.mode) == (f"test/{OWN}", "min")
    assert command("ranks", "run=run") == 0
    assert OWN in capsys.readouterr().out


def test_a_search_goes_by_it(words: list[str], tmp_path: Path) -> None:
    absent = dict.fromkeys(("trials", "jobs", "budget", "most_parameters", "most_memory"))
    plan = Plan({**absent, "words": [*words, "adapter.rank=1,2"]}, tmp_path)
    assert (plan.metric, plan.mode) == (f"validation/{OWN}", "max")


@pytest.mark.parametrize(("given", "expected"), [([], "validation/f1"), (["monitor.metric=train/loss"], "train/loss")])
def test_callbacks_watch_it_unless_another_is_given(given: list[str], expected: str, tmp_path: Path) -> None:
    settings: Any = settings_of("train", ["callbacks=early_stopping", *given], tmp_path)
    data: Any = SimpleNamespace(monitored=lambda: "f1")
    found = with_metric(settings, data)
    watched = {name: node["monitor"] for name, node in found["callbacks"].items()}
    assert watched == {"best": expected, "early_stopping": expected, "last": "step", "recent": "step"}
    assert found["monitor"]["metric"] == expected
