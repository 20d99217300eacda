"""`optimizer.lr=auto` and `budget=`: what is tried before a run begins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from loralight.commands.trial import Tried

InProcess = Callable[..., int]
Refused = Callable[..., str]


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def assert_same_adapter(one: Path, other: Path) -> None:
    tensors, others = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, other))
    assert tensors.keys() == others.keys()
    assert all(tensors[name].equal(others[name]) for name in tensors)


def test_a_run_at_a_rate_that_was_found_is_the_run_at_that_rate(
    tiny_run: list[str], in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_run, "data.batch_size=1", "trainer.max_epochs=5"]  # 200 steps
    assert in_process("train", *words, "optimizer.lr=auto", "hydra.run.dir=found") == 0
    tried = json.loads((tmp_path / "found" / "tried.json").read_text())
    assert tried["most_steps"] is None
    assert 1e-3 / 800 < tried["lr"] < 1e-3 * 13
    assert f"optimizer.lr=auto: {tried['lr']:g}" in capsys.readouterr().err
    assert in_process("train", *words, f"optimizer.lr={tried['lr']}", "hydra.run.dir=given") == 0
    assert_same_adapter(tmp_path / "found", tmp_path / "given")
    assert summary(tmp_path / "found")["lr"] == tried["lr"]


def test_a_run_that_goes_on_has_the_rate_that_it_was_begun_with(
    tiny_run: list[str], in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "optimizer.lr=auto", "hydra.run.dir=run") == 0
    assert "a run of 5 steps is too short to try rates: the method's own is taken" in capsys.readouterr().out
    (tmp_path / "run" / "tried.json").write_text('{"lr": 0.0123, "most_steps": null}')
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    assert "optimizer.lr=auto: 0.0123" in capsys.readouterr().err
    assert summary(tmp_path / "run")["lr"] == 0.0123


def test_a_budget_ends_the_run_early_and_as_one_that_was_told_its_epochs(
    tiny_run: list[str], in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny_run if "max_epochs" not in word]
    assert in_process("train", *words, "budget=1h", "hydra.run.dir=long", "task.pooling=mean") == 0
    assert "trainer.max_epochs=auto: 20 epochs of 5 steps, validated every 4" in capsys.readouterr().err
    twice = ["trainer.max_epochs=2", "+trainer.check_val_every_n_epoch=2"]
    for name, steps, told, same in (
        ("epochs", 14, "budget: 2 epochs of 5 steps, validated every 2", twice),
        ("part", 3, "budget: 1 epoch of 3 steps", ["trainer.max_epochs=1", "trainer.limit_train_batches=3"]),
    ):
        pace = {"most_steps": steps}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("loralight.commands.trial._try", lambda *_, pace=pace: Tried(**pace))
            assert in_process("train", *words, "budget=1h", f"hydra.run.dir={name}") == 0
        assert told in capsys.readouterr().err
        assert in_process("train", *words, *same, f"hydra.run.dir={name}_same") == 0
        assert_same_adapter(tmp_path / name, tmp_path / f"{name}_same")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=soon"], "E-BUDGET: budget=soon: give a time such as 10min"),
        (["budget=10min"], "E-BUDGET: budget= decides how long the run is: leave out trainer.max_epochs"),
        (["budget=10min", "trainer.max_epochs=auto", "trainer.max_steps=9"], "E-BUDGET: budget= decides"),
        (["budget=0.001", "trainer.max_epochs=auto"], "E-BUDGET: budget: 0 s are left for the run"),
        (["optimizer.lr=automatic"], "E-"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], message: str, tiny_run: list[str], refused: Refused) -> None:
    assert message in refused("train", *tiny_run, *words, "hydra.run.dir=run")


@pytest.mark.parametrize("words", [["optimizer.lr=auto"], ["budget=1h", "trainer.max_epochs=auto"]])
def test_several_processes_would_each_find_their_own(
    words: list[str], tiny_run: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "E-TRIAL" in refused("train", *tiny_run, *words, "hydra.run.dir=run")


@pytest.mark.parametrize("content", [None, "{}", '{"lr": -1.0}', '{"lr": 1}', '{"lr": "1e-3"}', '{"lr": 1e999}', "[1]"])
def test_a_folder_that_does_not_say_what_was_found_is_refused(
    content: str | None, folder_begun: Path, refused: Refused
) -> None:
    file = folder_begun / "tried.json"
    if content is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(content)
    assert "E-" in (told := refused("train", f"resume={folder_begun}", "trainer.max_epochs=2"))
    assert "tried.json" in told
    assert "Traceback" not in told


@pytest.fixture(scope="module")
def folder_begun(folder_of_runs: tuple[Path, InProcess], tiny_bert: str, texts: Path) -> Path:
    folder, command = folder_of_runs
    words = [f"data.path={texts}", f"model.checkpoint={tiny_bert}", "model.max_length=16", "trainer=cpu"]
    words += ["data=text_classification", "trainer.max_epochs=1", "optimizer.lr=auto", "data.batch_size=8"]
    assert command("train", *words, "hydra.run.dir=begun") == 0
    return folder / "begun"
