"""`loralight train` from end to end: what a run leaves behind, and that a resumed run is the same run."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralight.artifacts.run_folder import take
from loralight.config.composition import settings_of
from loralight.reports.answers import read_answers
from loralight.reports.runs import read_run
from loralight.training.checkpoint import newest, verify
from loralight.training.launch import launch
from loralight.training.task import AdapterTask

InProcess = Callable[..., int]
Refused = Callable[..., str]
ADAPTER = "adapter/adapter_model.safetensors"


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / ADAPTER)


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def rows_of(run: Path, file: str = "metrics.csv") -> list[dict[str, str]]:
    with (run / file).open(encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_run_leaves_all_its_results(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> None:
    assert in_process("train", *tiny_run, "trainer.max_epochs=2", "hydra.run.dir=run") == 0
    run = tmp_path / "run"
    for folder in (run / "adapter", newest(run), *(run / "checkpoints" / "best").iterdir()):
        verify(folder)
    assert {file.name for file in (run / "adapter").iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "loralight.json", "manifest.json")
    }
    assert {entry.name for entry in run.iterdir()} == {
        *(".hydra", "adapter", "checkpoints", "metrics.csv", "summary.json", "train.log"),
        *("predictions.jsonl", "validation_predictions.jsonl", "progress.html"),
    }
    assert "adapter:" in (run / ".hydra" / "config.yaml").read_text()

    summary = read_json(run / "summary.json")
    assert (summary["task"], summary["adapter"], summary["seed"]) == ("text_classification", "lora", 0)
    assert (summary["steps"], summary["batch_size"], summary["processes"]) == (10, 8, 1)
    assert summary["parameters"]["trainable"] == sum(tensor.numel() for tensor in tensors_of(run).values())
    assert summary["parameters"]["total"] > summary["parameters"]["trainable"]
    assert summary["bytes"]["adapter"] == (run / ADAPTER).stat().st_size
    assert summary["bytes"]["model"] == 4 * summary["parameters"]["total"]  # float32
    assert summary["bytes"]["peak_memory"] > summary["bytes"]["model"] and summary["seconds_per_step"] > 0
    scores = {
        f"{split}/{name}" for split in ("validation", "test") for name in ("loss", "accuracy", "f1", "mcc", "ece")
    }
    assert summary["metrics"].keys() == scores
    assert summary["baseline"]["test/accuracy"] == 0.5  # as many good as bad ones
    assert {"python", "torch", "lightning"} <= summary["versions"].keys()

    measured = rows_of(run)
    assert {"epoch", "step", "train/epoch_loss", *scores} <= measured[0].keys()
    assert [row["epoch"] for row in measured if row["train/epoch_loss"]] == ["0", "1"]
    at_end = [row for row in measured if row["epoch"] == "1"]
    held_out, trained = (
        next(float(row[name]) for row in at_end if row[name]) for name in ("validation/loss", "train/epoch_loss")
    )
    assert summary["generalisation_gap"] == pytest.approx(held_out - trained)

    for split in ("validation", "test"):
        kept = read_answers(read_run(run), split)
        assert kept is not None and kept.split == split and len(kept.rows) == kept.num_rows
        right = [answer.given == answer.right for answer in kept.rows.values()]
        assert mean(right) == pytest.approx(summary["metrics"][f"{split}/accuracy"])
        assert all(answer.input is None for answer in kept.rows.values()) is (split == "validation" or all(right))


def test_the_log_has_a_line_for_each_epoch_and_no_line_twice(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "trainer.max_epochs=3", "hydra.run.dir=run") == 0
    printed = capsys.readouterr()
    log = (tmp_path / "run" / "train.log").read_text()
    for text in (log, printed.err):
        lines = [line for line in text.splitlines() if " epoch " in line]
        assert [line.partition(" epoch ")[2].split(",")[:2] for line in lines] == [
            [f"{epoch}/3", f" step {5 * epoch}"] for epoch in (1, 2, 3)
        ]
        assert "train/loss" in lines[0] and "validation/accuracy" in lines[0]
        assert text.count("run folder:") == 1
    assert "WARNING" not in log and "Warning" not in log + printed.err
    for title in ("trainable parameters", "memory before activations", "results", "cost", "predictions on rows"):
        for text in (log, printed.out):
            assert len(re.findall(rf"^{title}", text, re.MULTILINE)) == 1, title


def test_two_runs_of_one_seed_are_equal_and_of_another_seed_are_not(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    for name, seed in {"one": 1, "same": 1, "other": 2}.items():
        assert in_process("train", *tiny_run, f"seed={seed}", f"hydra.run.dir={name}") == 0
    assert_same_tensors(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "same"))
    one, other = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other")
    assert all(not torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_the_best_checkpoint_is_what_is_measured_and_saved(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    worst_is_best = ["monitor.metric=validation/loss", "monitor.mode=max", "trainer.max_epochs=4", "optimizer.lr=0.01"]
    assert in_process("train", *tiny_run, *worst_is_best, "hydra.run.dir=run") == 0
    run = tmp_path / "run"
    losses = [float(row["validation/loss"]) for row in rows_of(run) if row["validation/loss"]][:4]
    assert losses.index(max(losses)) < 3  # the best is not the last
    (best,) = (run / "checkpoints" / "best").iterdir()
    assert best.name.startswith(f"epoch={losses.index(max(losses))}-")
    assert read_json(run / "summary.json")["metrics"]["validation/loss"] == pytest.approx(max(losses), rel=1e-6)
    state = load_file(best / "tensors.safetensors")
    kept = {name.removeprefix("checkpoint.state_dict."): tensor for name, tensor in state.items()}
    names = {name: name.removeprefix("base_model.model.").replace(".weight", "") for name in tensors_of(run)}
    saved = {names[name]: tensor for name, tensor in tensors_of(run).items()}
    assert_same_tensors(saved, {n: t for name, t in kept.items() if (n := name.replace(".weight", "")) in saved})


def test_a_finished_run_can_be_trained_longer(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> None:
    longer = ["scheduler=constant", "scheduler.warmup=0"]  # a schedule that does not ask how long the run is
    assert in_process("train", *tiny_run, *longer, "hydra.run.dir=short") == 0
    assert in_process("train", "resume=short", "trainer.max_epochs=3") == 0
    assert in_process("train", *tiny_run, *longer, "trainer.max_epochs=3", "hydra.run.dir=long") == 0
    assert read_json(tmp_path / "short" / "summary.json")["steps"] == 15
    last = [load_file(newest(tmp_path / run) / "tensors.safetensors") for run in ("short", "long")]
    assert_same_tensors(*({n: t for n, t in state.items() if ".callbacks." not in n} for state in last))
    log = (tmp_path / "short" / "train.log").read_text()
    assert [f"epoch {epoch}/3" in log for epoch in (1, 2, 3)] == [False, True, True]
    assert "epoch 1/1" in log


def test_a_run_that_ended_within_an_epoch_can_be_trained_longer(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    line = [*tiny_run, "scheduler=constant", "scheduler.warmup=0", "trainer.max_epochs=2"]
    assert in_process("train", *line, "trainer.max_steps=3", "hydra.run.dir=short") == 0
    assert in_process("train", "resume=short", "trainer.max_steps=8") == 0
    assert in_process("train", *line, "trainer.max_steps=8", "hydra.run.dir=long") == 0
    states = [load_file(newest(tmp_path / run) / "tensors.safetensors") for run in ("short", "long")]
    assert_same_tensors(*({n: t for n, t in state.items() if ".state_dict." in n} for state in states))
    assert [newest(tmp_path / run).name for run in ("short", "long")] == ["epoch=1-step=8.ckpt"] * 2


def test_a_run_that_is_trained_longer_follows_the_schedule_of_the_longer_run_from_its_first_step(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    real = AdapterTask.on_before_optimizer_step

    def noting(task: AdapterTask, optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        real(task, optimizer)

    monkeypatch.setattr(AdapterTask, "on_before_optimizer_step", noting)
    assert in_process("train", *tiny_run, "hydra.run.dir=run") == 0  # linear: its last rates are nearly 0
    short, rates[:] = list(rates), []
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    resumed, rates[:] = list(rates), []
    assert in_process("train", *tiny_run, "trainer.max_epochs=2", "hydra.run.dir=long") == 0
    assert (len(short), len(resumed)) == (5, 5)
    assert resumed == rates[5:] and short[-1] < resumed[0]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("adapter.rank=4", "adapter.rank: 8, now 4"),
        ("optimizer.lr=1", "optimizer.lr"),
        ("seed=5", "seed: 0, now 5"),
        ("scheduler=cosine", "scheduler.name: 'linear', now 'cosine'"),
        ("scheduler.warmup=0.5", "scheduler.warmup"),
        ("~scheduler", "scheduler"),
        ("trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches: 1, now 4"),
        ("callbacks=early_stopping", "callbacks.early_stopping"),
    ],
)
def test_another_run_is_not_resumed_in_ones_place(override: str, says: str, refused: Refused, tmp_path: Path) -> None:
    take(tmp_path / "run", settings_of("train", [], tmp_path / "run"), [])
    assert "E-RESUME" in (message := refused("train", "resume=run", override)) and says in message


def test_a_run_is_not_resumed_on_other_base_weights(
    in_process: InProcess, refused: Refused, tiny_run: list[str], tiny_bert: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "base")
    settings = [given for given in tiny_run if not given.startswith("model.checkpoint")]
    assert in_process("train", *settings, "model.checkpoint=base", "hydra.run.dir=run") == 0
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][3] += 1
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    before = tensors_of(tmp_path / "run")
    printed = refused("train", "resume=run", "trainer.max_epochs=2")
    assert "E-BASE: the run was begun on other weights" in printed and " epoch 2/2" not in printed
    assert_same_tensors(tensors_of(tmp_path / "run"), before)


def test_a_resumed_run_says_which_checkpoints_it_passed_over(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "callbacks.recent.every_n_train_steps=2", "hydra.run.dir=run") == 0
    damaged = [*(tmp_path / "run/checkpoints").glob("*/epoch=*-step=5.ckpt")]
    assert len(damaged) == 2
    for folder in damaged:
        (folder / "state.json").write_text("{}")
    capsys.readouterr()
    assert in_process("train", "resume=run") == 0
    printed = capsys.readouterr().err
    for folder in damaged:
        assert f"passed over: E-CKPT-HASH: {folder}" in printed
    assert "epoch=0-step=4-inside.ckpt" in printed
    for folder in damaged:  # made again, in their places
        verify(folder)


def test_a_folder_with_a_run_is_not_trained_into(refused: Refused, tiny_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("precious")
    assert "E-OUTPUT" in refused("train", *tiny_run, "hydra.run.dir=run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["summary.json"]


def test_a_sweep_trains_once_for_each_value(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("sweep", *tiny_run, "adapter.rank=2,4") == 0
    printed = capsys.readouterr()
    assert "[HYDRA]" not in printed.out + printed.err and "adapter.rank=4" in printed.out
    (sweep,) = (tmp_path / "runs" / "text_classification").glob("sweep_*")
    for rank in (2, 4):
        run = sweep / f"adapter.rank-{rank}"
        assert read_json(run / "adapter" / "adapter_config.json")["r"] == rank
        assert {t.shape[0] for name, t in tensors_of(run).items() if "lora_A" in name} == {rank}
        assert (run / "train.log").read_text().count("epoch 1/1") == 1


def test_a_run_that_ends_before_its_first_validation_has_a_score_for_the_sweeper(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float | None] = []
    monkeypatch.setattr("loralight.commands.train.launch", lambda *given: scores.append(launch(*given)))
    assert in_process("train", *tiny_run, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert scores == [read_json(tmp_path / "run" / "summary.json")["metrics"]["validation/accuracy"]]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch 2.10's own
def test_a_compiled_model_learns_the_same(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> None:
    torch._dynamo.reset()
    few = ["data.limit_rows=16", "data.limit_eval_rows=8", "probe=false"]  # each new shape of a batch is compiled
    line = ["train", *tiny_run, *few, "adapter.dropout=0", "task.base_dropout=false", "scheduler=constant"]
    assert in_process(*line, "hydra.run.dir=plain") == 0
    assert in_process(*line, "hydra.run.dir=compiled", "compile=aot_eager") == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain, compiled = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("compile=inducter", "E-COMPILE: .*cudagraphs, inductor.* Did you mean 'inductor'"),
        ("logger=wandb", "E-PACKAGE: .*wandb"),
        ("logger=mlflow", "E-PACKAGE: .*mlflow"),
        ("trainer.accelerator=abacus", "E-TRAINER: .*abacus"),
        ("trainer.strategy=divide", "E-TRAINER: .*divide"),
        ("monitor.metric=validation/accurcy", "E-MONITOR: .*Did you mean 'validation/accuracy'"),
        ("data.batch_size=0", "E-BATCH: "),
        ("optimizer.lr=0", r"E-LR: optimizer\.lr is 0; with that nothing is learned"),
        ("adapter.lr=-1", r"E-LR: optimizer\.lr is -1"),
        ("optimizer.lr=nan", r"E-LR: optimizer\.lr is nan"),
        ("optimizer.betas=[0.9,1.0]", "E-OPTIMIZER: optimizer: Invalid beta parameter at index 1"),
        ("optimizer.weight_decay=-1", "E-OPTIMIZER: optimizer: Invalid weight_decay value"),
        ("task.head_lr=0", r"E-LR: task\.head_lr is 0"),
        ("trainer.gradient_clip_val=nan", r"E-TRAINER: trainer\.gradient_clip_val is nan"),
        ("adapter.rank=100000", r"E-RANK: adapter\.rank is 100000, but no layer of the model has a rank above 32"),
        ("adapter.rank_pattern={query: 100000}", r"E-RANK: adapter\.rank_pattern\[query\] is 100000"),
        ("adapter.alpha=-1", r"E-ALPHA: adapter\.alpha is -1"),
        ("adapter.alpha=nan", r"E-ALPHA: adapter\.alpha is nan"),
        ("adapter.dropout=1.5", r"E-DROPOUT: adapter\.dropout is 1\.5"),
        ("adapter.dropout=nan", r"E-DROPOUT: adapter\.dropout is nan"),
        ("callbacks.best=3", "E-CONFIG: callbacks.best"),
        ("+callbacks.mine.patience=3", "E-CONFIG: callbacks.mine"),
    ],
)
def test_what_cannot_be_trained_is_told_before_the_first_step(
    override: str, says: str, in_process: InProcess, tiny_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if override.startswith("logger=") and find_spec(override.partition("=")[2]):
        pytest.skip("the optional package is installed")
    plain = [given for given in tiny_run if given.partition("=")[0] != override.partition("=")[0]]
    assert in_process("train", *plain, override) == 2
    printed = capsys.readouterr()
    assert " epoch 1/1" not in printed.err and "Traceback" not in printed.err
    assert re.search(f"^loralight: {says}", printed.err, re.MULTILINE), printed.err


@pytest.mark.parametrize("without", ["~logger", "~callbacks", "~scheduler"])
def test_an_optional_part_may_be_left_out(
    without: str, in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, without, "hydra.run.dir=run") == 0
    assert (tmp_path / "run" / "summary.json").is_file()
