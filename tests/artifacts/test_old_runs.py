"""Folders that earlier versions wrote: each is still read, with the same results.

``old_runs/`` holds the folders of two runs, by the commit that made each, and the BERT and texts that they were made
with: `loralight train data=text_classification data.path=texts model.checkpoint=base ... hydra.run.dir=/runs/...`, and
what `loralight predict` of that commit then said.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pytest import approx

import loralight

OLD = Path(__file__).with_name("old_runs")
RUNS = sorted(folder.name for folder in OLD.glob("run_*"))
assert RUNS


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, in_process: Callable[..., int], tmp_path: Path) -> Path:
    """A copy of an old run's folder in the working directory, next to its model and data."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return Path(request.param)


def test_it_predicts_as_it_did(run: Path) -> None:
    for line in (run / "predictions.jsonl").read_text().splitlines():
        expected = json.loads(line)
        (found,) = loralight.load(run).predict([expected["text"]])
        assert found["label"] == expected["label"]
        assert found["probabilities"] == approx(expected["probabilities"], abs=5e-6)


def test_it_is_evaluated_as_it_was(run: Path, in_process: Callable[..., int]) -> None:
    assert in_process("evaluate", f"run={run}", "split=test", "output=scores.json") == 0
    scores, summary = json.loads(Path("scores.json").read_text()), json.loads((run / "summary.json").read_text())
    expected = {name: value for name, value in summary["metrics"].items() if name.startswith("test/")}
    assert {name: scores[name] for name in expected} == approx(expected, abs=1e-6)


def test_it_is_merged(run: Path, in_process: Callable[..., int]) -> None:
    assert in_process("merge", f"run={run}", "output=merged") == 0
    assert (Path("merged") / "model.safetensors").is_file()


def test_it_is_resumed_or_says_why_not(
    run: Path, in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    code = in_process("train", f"resume={run}", "trainer.max_epochs=4")
    if run.name == "run_987df9f":  # its checkpoints lack the position in the run
        assert code == 2 and "does not say where the run stood" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    assert [path.name for path in (run / "checkpoints" / "last").glob("epoch=3*")] == ["epoch=3-step=12.ckpt"]
    assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["adapter"]["lr_rank"] is None


def test_a_setting_that_it_lacks_may_not_be_another_now(run: Path, refused: Callable[..., str]) -> None:
    assert "task.pooling: 'model', now 'mean'" in refused("train", f"resume={run}", "task.pooling=mean")


def test_the_seed_of_an_old_run_chose_its_validation_rows_too(
    in_process: Callable[..., int], tiny_run: list[str], texts: Path, tmp_path: Path
) -> None:
    words = [word for word in tiny_run if not word.startswith("data.path=")]
    single = f"data.path='{texts / 'train.csv'}'"
    assert in_process("train", *words, single, "seed=3", "data.split_seed=3", "hydra.run.dir=run") == 0
    config, said = (tmp_path / "run" / ".hydra" / f"{name}.yaml" for name in ("config", "overrides"))
    for file in (config, said):  # as an earlier version wrote them
        file.write_text("\n".join(line for line in file.read_text().splitlines() if "split_seed" not in line) + "\n")
    assert in_process("evaluate", "run=run", "split=validation", "output=scores.json") == 0
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert json.loads(Path("scores.json").read_text())["validation/loss"] == approx(metrics["validation/loss"])
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    assert yaml.safe_load(config.read_text())["data"]["split_seed"] == 3
