"""Several processes: they compute what one would, fail as one, and leave nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralight.errors import InputError
from loralight.training.launch import launch, num_nodes, num_processes, process_rank

InProcess = Callable[..., int]
ADAPTER = "adapter/adapter_model.safetensors"
MARK = "LORALIGHT_TEST_MARK"
PROC = Path("/proc/self/environ")
BOOM = '''"""Fails on the second of two processes."""
from lightning import Callback

class Boom(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise ValueError("boom on rank one")
'''

SPOILT = '''"""On the second of two processes a loss that is no number, then a gradient that is infinite."""
from lightning import Callback

class Spoilt(Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            step = task.step
            task.step = lambda given: (found := step(given))._replace(loss=found.loss * float("nan"))
        if trainer.global_rank == 1 and batch_idx == 3:
            del task.step
            learning = next(p for p in task.parameters() if p.requires_grad)
            learning.register_hook(lambda gradient: gradient * (float("inf") if trainer.global_step == 3 else 1))
'''


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of every process that a test starts."""
    word = uuid.uuid4().hex
    monkeypatch.setenv(MARK, word)
    return word


def alive(mark: str) -> list[int]:
    """Processes begun with ``mark`` in their environment (that of a dead one is empty).

    Python's resource tracker is not counted: it ends with the process that launches, which may be this one.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if marked and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # gone, or another user's
            continue
    return found


def assert_close(run: Path, other: Path) -> None:
    one, two = (load_file(folder / ADAPTER) for folder in (run, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_two_processes_train_what_one_does(
    in_process: InProcess, still_run: list[str], mark: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *still_run, "trainer=ddp_cpu", "data.batch_size=4", "hydra.run.dir=two") == 0
    assert capfd.readouterr().err.count("epoch 1/1") == 1
    assert in_process("train", *still_run, "trainer=cpu", "data.batch_size=8", "hydra.run.dir=one") == 0
    assert_close(tmp_path / "two", tmp_path / "one")
    runs = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert [(run["processes"], run["steps"]) for run in runs] == [(1, 5), (2, 5)]
    assert runs[1]["metrics"] == pytest.approx(runs[0]["metrics"], abs=1e-5)  # each row measured once
    assert "epoch 1/1" in (tmp_path / "two" / "train.log").read_text()
    assert (tmp_path / "two" / "train.rank1.log").is_file()
    assert not (tmp_path / "one" / "train.rank1.log").exists()
    if PROC.exists():
        assert alive(mark) == []


@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(
    ("ranks", "batch_size"), [(2, 41), pytest.param(4, 10, marks=pytest.mark.slow)]
)  # of 83 rows, one and three are left over: fewer than there are processes
def test_rows_that_are_fewer_than_the_processes_are_trained_on_as_in_one(
    ranks: int, batch_size: int, in_process: InProcess, still_run: list[str], tmp_path: Path
) -> None:
    rows = [f"{['dull', 'fine'][n % 2]}{' film' * (n % 11)},{['bad', 'good'][n % 2]}" for n in range(83)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    given = [override for override in still_run if not override.startswith("data.path")]
    given += ["data.train=train.csv", "data.validation=train.csv", "optimizer.lr=0.01", "trainer.max_epochs=2"]
    several = ["trainer=ddp_cpu", f"trainer.devices={ranks}", f"data.batch_size={batch_size}", "hydra.run.dir=several"]
    assert in_process("train", *given, *several) == 0
    alone = ["trainer=cpu", f"data.batch_size={ranks * batch_size}", "hydra.run.dir=one"]
    assert in_process("train", *given, *alone) == 0
    runs = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("several", "one")]
    assert runs[0]["steps"] == runs[1]["steps"] == 2 * (83 // (ranks * batch_size) + 1)
    assert runs[0]["metrics"] == pytest.approx(runs[1]["metrics"], abs=1e-5)
    assert_close(tmp_path / "several", tmp_path / "one")


@pytest.mark.usefixtures("warm_ranks")
def test_a_run_of_two_processes_goes_on_in_one_with_the_same_steps(
    in_process: InProcess,
    loralight: Callable[..., subprocess.CompletedProcess[str]],
    still_run: list[str],
    tmp_path: Path,
) -> None:
    begun = [*still_run, "data.global_batch_size=8", "scheduler=constant", "scheduler.warmup=0", "trainer.max_epochs=2"]
    begun += ["monitor.metric=validation/loss", "monitor.mode=min"]  # which tells every step apart
    amid = ["trainer.max_steps=7"]  # of the ten, five in each epoch
    assert in_process("train", *begun, *amid, "trainer=ddp_cpu", "hydra.run.dir=run") == 0
    resumed = ["trainer.devices=1", "trainer.accumulate_grad_batches=2", "trainer.max_steps=-1"]
    done = loralight("train", "resume=run", *resumed)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "run" / "train.log").read_text()
    assert [line.partition(": ")[2] for line in told.splitlines() if line.startswith("optimizer step")] == [
        *("8 rows: 2 processes x 4 rows", "8 rows: 2 accumulated batches x 4 rows")
    ]
    assert in_process("train", *begun, "trainer=cpu", "hydra.run.dir=one") == 0
    assert_close(tmp_path / "run", tmp_path / "one")
    runs = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "one")]
    assert [(run["processes"], run["batch_size"], run["steps"]) for run in runs] == [(1, 4, 10), (1, 8, 10)]
    assert runs[0]["metrics"] == pytest.approx(runs[1]["metrics"], abs=1e-5)


def test_what_a_process_refuses_is_one_message(
    in_process: InProcess, still_run: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [override for override in still_run if not override.startswith("data.path")]
    assert in_process("train", *given, "trainer=ddp_cpu", "data.path=./nowhere", "hydra.run.dir=run") == 2
    printed = capfd.readouterr().err.splitlines()
    assert printed[-1].startswith("loralight: E-DATA: data.path=./nowhere")
    assert [line for line in printed if "Traceback" in line] == []


def test_what_is_not_finite_on_one_process_is_applied_on_none_and_all_tell_whose_it_is(
    loralight: Callable[..., subprocess.CompletedProcess[str]], still_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "made_spoilt" / "conf").mkdir(parents=True)
    (tmp_path / "made_spoilt" / "__init__.py").write_text(SPOILT)
    line = ["--plugin-dir", "made_spoilt", "trainer=ddp_cpu", "+callbacks.spoilt._target_=made_spoilt.Spoilt"]
    done = loralight("train", *still_run, *line, "data.batch_size=4", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / ADAPTER).values())
    for file in ("train.log", "train.rank1.log"):
        told = re.findall(r"E-NONFINITE: .*", (tmp_path / "run" / file).read_text())
        assert len(told) == 2
        loss = r"E-NONFINITE: the loss is nan at step 3 \(epoch 1, rank 1; rows \d+, \d+, \d+, \d+ of the train split"
        assert re.match(loss, told[0]), told
        assert re.match(
            r"E-NONFINITE: a gradient is not finite \(the loss is 0\.\d+\) at step 4 \(epoch 1; ", told[1]
        ), told


@pytest.mark.slow
def test_a_failing_process_ends_all_with_its_own_traceback(
    cold_loralight: Callable[..., subprocess.CompletedProcess[str]], still_run: list[str], mark: str, tmp_path: Path
) -> None:
    (tmp_path / "made_boom" / "conf").mkdir(parents=True)
    (tmp_path / "made_boom" / "__init__.py").write_text(BOOM)
    line = ["--plugin-dir", "made_boom", "trainer=ddp_cpu", "+callbacks.boom._target_=made_boom.Boom"]
    done = cold_loralight("train", *still_run, *line, "data.batch_size=4")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: boom on rank one")
    assert "process 1 failed" in done.stderr
    if PROC.exists():
        assert alive(mark) == []


@pytest.mark.slow
def test_each_job_of_a_sweep_has_processes_of_its_own(
    cold_loralight: Callable[..., subprocess.CompletedProcess[str]],
    in_process: InProcess,
    still_run: list[str],
    mark: str,
    tmp_path: Path,
) -> None:
    line = ["-m", "adapter.rank=2,4", "trainer=ddp_cpu", "data.batch_size=4", "hydra.sweep.dir=sweep"]
    done = cold_loralight("train", *still_run, *line)
    assert done.returncode == 0, done.stderr
    if PROC.exists():
        assert alive(mark) == []
    for rank in (2, 4):
        run = tmp_path / "sweep" / f"adapter.rank-{rank}"
        assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == rank
        assert json.loads((run / "summary.json").read_text())["processes"] == 2
        assert (run / "train.rank1.log").is_file()
        settings = [*still_run, "trainer=cpu", "data.batch_size=8", f"adapter.rank={rank}"]
        assert in_process("train", *settings, f"hydra.run.dir=one{rank}") == 0
        assert_close(run, tmp_path / f"one{rank}")


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="needs /proc to see who is alive")
def test_a_killed_parent_takes_its_processes_along(still_run: list[str], mark: str, tmp_path: Path) -> None:
    line = ["train", *still_run, "trainer=ddp_cpu", "trainer.max_epochs=100000", "hydra.run.dir=run"]
    process = subprocess.Popen([sys.executable, "-m", "loralight", *line], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "epoch 1/" in log.read_text() if (log := tmp_path / "run" / "train.log").exists() else False)
        assert len(alive(mark)) >= 3
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not alive(mark))
    finally:
        for left in alive(mark):
            os.kill(left, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="needs /proc to see who is alive")
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, 143, r"^loralight: stopped by SIGTERM; saved run/checkpoints/last/\S+; go on with: \S+ train"),
        (
            signal.SIGUSR1,
            143,
            r"^loralight: stopped by SIG(USR1|TERM); saved run/checkpoints/last/\S+; go on with: \S+ train",
        ),
        (signal.SIGKILL, 1, r"^RuntimeError: process [01] was killed by SIGKILL, as the system does where memory"),
    ],
    ids=["SIGTERM", "SIGUSR1", "SIGKILL"],
)
def test_a_signal_to_one_process_ends_all_and_is_told_of(
    still_run: list[str], mark: str, tmp_path: Path, number: int, code: int, says: str
) -> None:
    line = ["train", *still_run, "trainer=ddp_cpu", "trainer.max_epochs=100000", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loralight", *line, "data.num_workers=1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: "epoch 1/" in log.read_text() if (log := tmp_path / "run" / "train.log").exists() else False)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(ranks[-1]), number)
        printed = process.communicate()[1]
        assert process.returncode == code
        assert re.search(says, printed.splitlines()[-1]), printed
        wait_for(lambda: not alive(mark), 15)  # a process that reads data looks every five seconds for its trainer
    finally:
        for left in alive(mark):
            os.kill(left, signal.SIGKILL)


def wait_for(happens: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [["--standalone"], ["--master-port", "29517"]], ids=["c10d", "static"])
def test_under_torchrun_its_processes_are_used_and_share_a_run_folder(
    in_process: InProcess, still_run: list[str], mark: str, tmp_path: Path, rendezvous: list[str]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous]
    line = ["-m", "loralight", "train", *still_run, "trainer=ddp_cpu", "data.batch_size=4"]
    done = subprocess.run(
        [*torchrun, *line],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "text_classification").iterdir()
    assert json.loads((run / "summary.json").read_text())["processes"] == 2
    assert (run / "train.rank1.log").is_file() and not (run / "ranks").exists()  # which our launcher would make
    assert in_process("train", *still_run, "trainer=cpu", "data.batch_size=8", "hydra.run.dir=one") == 0
    assert_close(run, tmp_path / "one")


@pytest.mark.parametrize(
    ("gpus", "trainer", "wanted"),
    [
        (0, {}, 1),
        (0, {"devices": 1}, 1),
        (0, {"accelerator": "cpu", "devices": 3}, 3),
        (0, {"accelerator": "cpu", "devices": "3"}, 3),
        (0, {"accelerator": "cpu", "devices": "auto"}, 1),
        (4, {"accelerator": "cpu", "devices": "auto"}, 1),
        (4, {"devices": "auto"}, 4),
        (4, {"accelerator": "gpu", "devices": -1}, 4),
        (4, {"accelerator": "cuda", "devices": "-1"}, 4),
        (4, {"accelerator": "gpu", "devices": 2}, 2),
        (4, {"accelerator": "gpu", "devices": [0, 3]}, 2),
        (4, {"accelerator": "gpu", "devices": "0, 3"}, 2),
        (4, {"accelerator": "gpu", "devices": "1,"}, 1),
        (4, {"accelerator": "gpu", "devices": [3]}, 1),
    ],
)
def test_as_many_processes_as_devices_asked_for(
    gpus: int, trainer: dict[str, Any], wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert num_processes(trainer) == wanted


@pytest.mark.parametrize(
    ("trainer", "code"),
    [
        ({"accelerator": "gpu", "devices": 3}, "E-DEVICES"),
        ({"accelerator": "gpu", "devices": [0, 1, 2]}, "E-DEVICES"),
        ({"accelerator": "cpu", "devices": 0}, "E-DEVICES"),
        ({"accelerator": "cpu", "devices": "none"}, "E-DEVICES"),
        ({"accelerator": "cpu", "devices": []}, "E-DEVICES"),
        ({"accelerator": "cpu", "devices": -2}, "E-DEVICES"),
        ({"accelerator": "gpu", "devices": 2, "num_nodes": 2}, "E-NODES"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(
    trainer: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=code):
        num_processes(trainer)


def test_under_an_outer_launcher_the_work_is_done_in_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    here: list[Any] = []
    launch(lambda config, folder: here.append(os.getpid()), {"trainer": {"accelerator": "cpu", "devices": 2}}, tmp_path)
    assert process_rank() == 1 and here == [os.getpid()]


@pytest.mark.parametrize(
    ("given", "environment", "number"),
    [
        ({}, {}, 1),
        ({"num_nodes": "auto"}, {}, 1),
        ({"num_nodes": "auto"}, {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"num_nodes": 2}, {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}, 2),
    ],
)
def test_the_machines_are_those_of_the_launcher_unless_the_settings_say(
    given: dict[str, Any], environment: dict[str, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert num_nodes(given) == number
