"""`loralight evaluate`: a finished run measured again."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralight.commands import evaluate

InProcess = Callable[..., int]


@pytest.fixture
def run(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> Path:
    """A finished run in the folder ``run``."""
    assert in_process("train", *tiny_run, "optimizer.lr=0.01", "hydra.run.dir=run") == 0
    return tmp_path / "run"


def metrics_in(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_each_split_measures_what_training_reported(
    run: Path, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    reported = metrics_in(run / "summary.json")["metrics"]
    for split, given in {"test": [], "validation": ["split=validation"]}.items():
        capsys.readouterr()
        assert in_process("evaluate", "run=run", *given, f"output={split}.json") == 0
        measured = metrics_in(tmp_path / f"{split}.json")
        assert measured == pytest.approx({name: v for name, v in reported.items() if name.startswith(split)})
        assert f"{split}/accuracy" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before  # the run stays as it was


def test_other_data_is_measured_with_the_labels_of_training(
    run: Path, in_process: InProcess, tmp_path: Path, texts: Path
) -> None:
    with (texts / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    for name, label in {"good": "good", "bad": "bad"}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([row for row in rows if row[1] in ("label", label)])
        assert in_process("evaluate", "run=run", f"data.test={name}.csv", f"output={name}.json") == 0
    halves = [metrics_in(tmp_path / f"{name}.json") for name in ("good", "bad")]
    whole = metrics_in(run / "summary.json")["metrics"]
    for name in ("test/accuracy", "test/loss"):  # as many good as bad ones
        assert sum(half[name] for half in halves) / 2 == pytest.approx(whole[name], rel=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["run=run", "split=train"], "E-SPLIT: split=train: choose validation or test"),
        (["run=run", "data.test=strange.csv"], "E-LABEL-RANGE: strange.csv: test row 0: label 'awful'"),
        (["run=run", "data.test=gone.csv"], "E-DATA: gone.csv"),
        (["run=run", "adapter.rank=4"], "E-ADAPTER-KEYS"),
        (["run=unfinished"], "E-ADAPTER: unfinished/adapter"),
        (["run=nowhere"], "E-RUN: run=nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_told(
    line: list[str], message: str, run: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "strange.csv").write_text("text,label\nwell,awful\n")
    (tmp_path / "unfinished" / ".hydra").mkdir(parents=True)
    (tmp_path / "unfinished" / ".hydra" / "config.yaml").write_bytes((run / ".hydra/config.yaml").read_bytes())
    assert message in refused("evaluate", *line)


def test_an_output_file_that_exists_is_not_overwritten(run: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("precious")
    assert "E-OUTPUT" in refused("evaluate", f"run={run.name}", "output=kept.json")
    assert (tmp_path / "kept.json").read_text() == "precious"


def test_forgetting_is_kept_in_a_folder_whose_links_lead_out_and_nothing_outside_is_written(tmp_path: Path) -> None:
    outside, folder = tmp_path / "precious", tmp_path / "run"
    outside.write_text("precious")
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    for name in ("forgetting.json", ".forgetting.json"):
        (folder / name).symlink_to(outside)
    evaluate._keep({"forgetting/loss": 1.5, "forgetting/loss_off": math.nan}, {"run": str(folder), "forgetting": {}})
    assert outside.read_text() == "precious"
    assert json.loads((folder / "forgetting.json").read_text())["metrics"] == {"forgetting/loss": 1.5}
