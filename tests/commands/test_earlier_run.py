"""`forgetting=run`: what another run had learned is measured before and after, by its own head."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

InProcess = Callable[..., int]


def test_a_run_that_starts_from_another_tells_what_is_left_of_its_score(
    in_process: InProcess, refused: Callable[..., str], tiny_run: list[str], texts: Path, tmp_path: Path
) -> None:
    line = ["train", *tiny_run, "optimizer.lr=0.02", "probe=false", "trainer.max_epochs=2"]
    assert in_process(*line, "hydra.run.dir=first") == 0
    learned = json.loads((tmp_path / "first" / "summary.json").read_text())["metrics"]
    for split in ("train", "validation"):  # the same words mean the opposite
        rows = (texts / f"{split}.csv").read_text()
        turned = rows.replace(",good", ",x").replace(",bad", ",good").replace(",x", ",bad")
        (tmp_path / f"{split}.csv").write_text(turned)
    words = ["data.path=null", "data.train=train.csv", "data.validation=validation.csv", "init=first"]
    probe = ["forgetting=run", "forgetting.run=first"]
    assert in_process(*line, *words, *probe, "hydra.run.dir=second") == 0
    found = json.loads((tmp_path / "second" / "summary.json").read_text())["metrics"]
    assert found["forgetting/accuracy_before"] == learned["validation/accuracy"]
    assert found["forgetting/f1_before"] == pytest.approx(learned["validation/f1"])
    assert {"forgetting/accuracy", "forgetting/accuracy_off"} <= found.keys()
    told = (tmp_path / "second" / "train.log").read_text()
    assert "with the adapter off the model computes exactly what the base model computed" in told

    told = refused(*line, "forgetting=run", "forgetting.run=nowhere", "hydra.run.dir=third")
    assert "E-RUN: forgetting.run=nowhere: not a run's folder" in told
