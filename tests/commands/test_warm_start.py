"""A new run that begins at the adapter and head of another one."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

InProcess = Callable[..., int]


@pytest.fixture
def first(in_process: InProcess, tiny_run: list[str]) -> Path:
    """The folder of the run to begin at."""
    assert in_process("train", *tiny_run, "optimizer.lr=0.01", "hydra.run.dir=first") == 0
    return Path("first")


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("place", ["first", "first/adapter"])
def test_it_begins_at_the_other_run_s_weights_with_settings_of_its_own(
    place: str, first: Path, in_process: InProcess, tiny_run: list[str]
) -> None:
    line = ["train", *tiny_run, f"init={place}", "hydra.run.dir=second", "adapter.dropout=0.1", "seed=7"]
    # too small to move a float32, and not so small that nothing could learn
    assert in_process(*line, "optimizer.lr=1e-12", "task.head_lr=1e-12", "optimizer.weight_decay=0") == 0
    assert f"init: begins at the adapter and head of {place}" in Path("second/train.log").read_text()
    before, after = weights(first), weights("second")
    assert before.keys() == after.keys()
    assert any(tensor.any() for name, tensor in before.items() if "lora_B" in name)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-8)
    scores = [json.loads((Path(run) / "summary.json").read_text())["linear_probe"] for run in (first, "second")]
    assert scores[0] == pytest.approx(scores[1]), "the probe is of the base's features"


def test_a_run_that_begins_so_is_resumed_at_its_own_checkpoint(
    first: Path, in_process: InProcess, tiny_run: list[str]
) -> None:
    for run, epochs in {"whole": 2, "half": 1}.items():
        line = [*tiny_run, "init=first", f"hydra.run.dir={run}", f"trainer.max_epochs={epochs}"]
        assert in_process("train", *line, "scheduler=constant", "scheduler.warmup=0") == 0
    assert in_process("train", "resume=half", "trainer.max_epochs=2") == 0
    last = "checkpoints/last/epoch=1-step=10.ckpt/tensors.safetensors"
    whole, half = (load_file(Path(run) / last) for run in ("whole", "half"))
    learned = [name for name in whole if "lora_" in name]
    assert learned and all(torch.equal(whole[name], half[name]) for name in learned)


def test_it_may_learn_from_other_rows_in_other_columns(
    first: Path, in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "more.csv").write_text("review,label\n" + "a fine film,good\na dull film,bad\n" * 3 + "a joy,good\n")
    line = [word for word in tiny_run if not word.startswith("data.path")]
    files = [f"data.{split}=more.csv" for split in ("train", "validation", "test")]
    assert in_process("train", *line, *files, "data.columns.text=review", "init=first", "hydra.run.dir=second") == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["init=nowhere"], "E-RUN: nowhere"),
        (
            ["init=first", "adapter.rank=3"],
            "E-ADAPTER-KEYS: init=first: adapter.rank is 3 here, and 8 there; first.*instead of",
        ),
        (
            ["init=first", "data.labels=[good,bad]"],
            "E-INIT: .*its task, text_classification, was .*labels=\\['bad', 'good'\\]",
        ),
        (["init=first", "task.head_start=probe"], "E-INIT: "),
        (["init=first", "adapter=linear_probe"], "E-INIT: "),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    words: list[str], says: str, first: Path, refused: Callable[..., str], tiny_run: list[str]
) -> None:
    assert re.search(says, refused("train", *tiny_run, *words, "hydra.run.dir=second"))


def test_a_damaged_folder_is_refused(first: Path, refused: Callable[..., str], tiny_run: list[str]) -> None:
    file = first / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert "E-CKPT-HASH" in refused("train", *tiny_run, "init=first", "hydra.run.dir=second")
