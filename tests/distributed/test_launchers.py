"""Runs whose processes torchrun or srun starts: signals to one of them, deaths, restarts, machines that come and go."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ..warm import run_warm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no signals to tell a process by")

InProcess = Callable[..., int]
ADAPTER = "adapter/adapter_model.safetensors"
MARK = "LORALIGHT_TEST_MARK"
RUNS = Path("runs/text_classification")
FATE = '''"""Notes the rows of each step, and meets its fate once."""
import json, os, time
from pathlib import Path
from lightning import Callback

class Fate(Callback):
    def __init__(self, *, rank: int = -1, step: int = 0, signal: int = 0, slow: float = 0.0):
        self.rank, self.step, self.signal, self.slow = rank, step, signal, slow

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        time.sleep(self.slow)
        folder, rank, step = Path(trainer.default_root_dir), trainer.global_rank, trainer.global_step
        if rank == self.rank and step == self.step and not (folder / "met").exists():
            (folder / "met").touch()
            if not self.signal:
                raise ValueError("met its fate")
            os.kill(os.getpid(), self.signal)
        rows = trainer.train_dataloader.batch_sampler.share(trainer.current_epoch, batch_idx, rank)
        said = {"epoch": trainer.current_epoch, "step": step, "ranks": trainer.world_size, "rows": [*map(int, rows)]}
        with (folder / f"rows.{rank}.{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(said) + "\\n")
'''


@pytest.fixture
def line(tiny_run: list[str], tmp_path: Path) -> list[str]:
    """A run of 2 epochs of 5 steps, each of 8 of 40 rows, that notes its rows; a checkpoint after each step."""
    return told(tiny_run, tmp_path)


def told(tiny_run: list[str], folder: Path) -> list[str]:
    (folder / "made_fate" / "conf").mkdir(parents=True)
    (folder / "made_fate" / "__init__.py").write_text(FATE)
    kept = [word for word in tiny_run if not word.startswith(("trainer", "data.batch_size"))]
    own = ["data.global_batch_size=8", "probe=false", "trainer.num_sanity_val_steps=0", "trainer.max_epochs=2"]
    own += ["trainer=ddp_cpu", "callbacks.recent.every_n_train_steps=1", "+callbacks.fate._target_=made_fate.Fate"]
    return ["train", "--plugin-dir", "made_fate", *kept, *own]


def fate(**settings: Any) -> list[str]:
    return [f"+callbacks.fate.{name}={value}" for name, value in settings.items()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def srun(rank: int, port: int, **further: str) -> dict[str, str]:
    """The environment of the process ``rank`` of two that srun has started on a machine."""
    given = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    given |= {"STEP_ID": 0, "JOB_ID": 4711, "JOB_NAME": "train"}
    named = {f"SLURM_{name}": str(value) for name, value in given.items()}
    return {**named, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **further}


def torchrun(rank: int, port: int, **further: str) -> dict[str, str]:
    """The environment of the process ``rank`` of two that torchrun has started on a machine."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    given |= {"GROUP_WORLD_SIZE": 1, "MASTER_PORT": port}
    named = {name: str(value) for name, value in given.items()}
    return {**named, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "again", **further}


def run(
    folder: Path, line: list[str], by: Callable[..., dict[str, str]], **further: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in two processes of a launcher."""
    port = free_port()

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **by(rank, port, **further)}
        return run_warm(["-m", "loralight", *line], cwd=folder, env=environment, timeout=150)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(start, range(2)))


def codes(done: list[subprocess.CompletedProcess[str]]) -> list[int]:
    return [each.returncode for each in done]


def steps_of(folder: Path) -> dict[tuple[int, int], list[int]]:
    """The rows of each step, as they were when it was made for the last time, by its epoch and number."""
    found: dict[tuple[int, int], list[int]] = {}
    files = sorted(folder.glob("rows.*.jsonl"), key=lambda file: file.stat().st_mtime)
    for attempt in (files[at : at + 2] for at in range(0, len(files), 2)):
        lines = [json.loads(line) for file in attempt for line in file.read_text().splitlines()]
        made: dict[tuple[int, int], list[int]] = {}
        for said in lines:
            made.setdefault((said["epoch"], said["step"]), []).extend(said["rows"])
        found |= made
    return {place: sorted(rows) for place, rows in found.items()}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, texts: Path
) -> tuple[dict[str, torch.Tensor], dict[tuple[int, int], list[int]]]:
    """What an uninterrupted run of two processes has learnt, and the rows of its steps."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_run = ["data=text_classification", f"data.path='{texts}'", f"model.checkpoint='{tiny_bert}'"]
    words = told([*tiny_run, "model.max_length=16"], folder)
    done = run(folder, [*words, "hydra.run.dir=run"], torchrun)
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    return load_file(folder / "run" / ADAPTER), steps_of(folder / "run")


def assert_as_whole(folder: Path, whole: Any) -> None:
    tensors = load_file(folder / ADAPTER)
    assert [name for name in whole[0] if not torch.equal(tensors[name], whole[0][name])] == []
    assert steps_of(folder) == whole[1]


def test_a_signal_to_one_of_srun_s_processes_stops_all_and_the_requeued_job_goes_on_in_its_folder(
    line: list[str], whole: Any, tmp_path: Path
) -> None:
    words = [*line, *fate(rank=1, step=3, signal=int(signal.SIGUSR1))]
    done = run(tmp_path, words, srun)
    assert codes(done) == [143, 143], done[0].stderr[-3000:]
    assert "stopped by SIG" in done[0].stderr.splitlines()[-1] and "stopped by" not in done[1].stderr
    (folder,) = (tmp_path / RUNS).iterdir()
    assert folder.name == "slurm-4711" and not (folder / "summary.json").exists()
    done = run(tmp_path, words, srun, SLURM_RESTART_COUNT="1")
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    assert [*(tmp_path / RUNS).iterdir()] == [folder]
    assert_as_whole(folder, whole)


def test_when_one_of_torchrun_s_processes_is_killed_all_end_and_go_on_when_they_are_started_again(
    line: list[str], whole: Any, tmp_path: Path
) -> None:
    words = [*line, *fate(rank=1, step=7, signal=int(signal.SIGKILL))]
    done = run(tmp_path, words, torchrun)
    assert codes(done) == [1, -signal.SIGKILL], done[0].stderr[-3000:]
    done = run(tmp_path, words, torchrun, TORCHELASTIC_RESTART_COUNT="1")
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    assert_as_whole(tmp_path / RUNS / "again", whole)


def test_a_run_that_is_done_is_so_when_it_is_started_again(
    in_process: InProcess, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *tiny_run, "probe=false", "trainer.max_steps=1", "hydra.run.dir=run"]
    assert in_process(*words) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert in_process(*words) == 0
    assert "run is done" in capsys.readouterr().err


@pytest.mark.parametrize(
    "further", [["trainer=cpu"], pytest.param(["trainer=ddp_cpu"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_single_task_of_srun_is_a_run_like_any_other(
    further: list[str],
    tiny_run: list[str],
    loralight: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in {**srun(0, free_port()), "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    done = loralight("train", *tiny_run, *further, "probe=false", "trainer.max_steps=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == (2 if "trainer=ddp_cpu" in further else 1)


@pytest.mark.parametrize(
    ("environment", "words", "says"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [], "E-LAUNCHER: SLURM gave this job 4 tasks, and srun has not"),
        (
            {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
            [],
            "E-LAUNCHER: srun with --ntasks=4: say --ntasks-per-node=2",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2"}, [], "E-LAUNCHER: torchrun's variables say that this is process 2 of 2"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, [], "E-LAUNCHER: the environment variable RANK is 'first'"),
        (torchrun(0, 1), ["trainer=cpu"], "E-DEVICES: torchrun has started 2 processes on 1 machines, and"),
        (torchrun(0, 1), ["trainer.num_nodes=2"], "with trainer.num_nodes=2 makes 4; give trainer.devices=2"),
        (torchrun(0, 1), ["trainer.devices=3"], "E-DEVICES: torchrun has started 2 processes"),
        ({}, ["trainer.accelerator=cuda", "trainer.devices=999"], "E-DEVICES: trainer.devices=999 on "),
        ({}, ["trainer.num_nodes=2"], "E-NODES: several machines need a launcher"),
        ({}, ["trainer.strategy=nonsense"], "E-TRAINER: You selected an invalid strategy name"),
        ({}, ["trainer.strategy=fsdp"], "E-TRAINER: trainer.strategy=fsdp is Lightning"),
        ({}, ["trainer.strategy=ddp_spawn"], "E-TRAINER: trainer.strategy=ddp_spawn starts processes by itself"),
        ({}, ["trainer.strategy=ddp_notebook"], "E-TRAINER: trainer.strategy=ddp_notebook starts processes by itself"),
    ],
)
def test_processes_that_cannot_be_as_the_settings_or_the_environment_say_are_one_error_before_anything_begins(
    environment: dict[str, str],
    words: list[str],
    says: str,
    refused: Callable[..., str],
    tiny_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kept = [word for word in tiny_run if not word.startswith("trainer=")]
    printed = refused("train", *kept, "trainer=ddp_cpu", *words, "hydra.run.dir=run")
    assert says in printed and printed.count("loralight: ") == 1
    assert not (tmp_path / "run").exists()


@contextmanager
def agent(folder: Path, line: list[str], *settings: str) -> Iterator[subprocess.Popen[str]]:
    """A ``torchrun``, which is killed in the end; its processes, in sessions of their own, then end by themselves."""
    command = [sys.executable, "-m", "torch.distributed.run", *settings, "-m", "loralight", *line]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", MARK: (word := uuid.uuid4().hex)}
    with (folder / f"agent.{free_port()}.txt").open("w+") as told:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=told, stderr=told, text=True, start_new_session=True
        )
        process.told = Path(told.name)  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            wait_for(lambda: not alive(word))


def alive(word: str) -> list[int]:
    """The processes that have a word in their environment (that of a dead one is empty)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or another user's
            if f"{MARK}={word}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_for(happens: Callable[[], bool], *processes: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happens():
        texts = [process.told.read_text()[-3000:] for process in processes]  # type: ignore[attr-defined]
        assert time.monotonic() < end, texts
        assert all(process.poll() in (None, 0) for process in processes), texts
        time.sleep(0.2)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_process_was_killed(line: list[str], whole: Any, tmp_path: Path) -> None:
    words = [*line, *fate(rank=1, step=7, signal=int(signal.SIGKILL))]
    with agent(tmp_path, words, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1") as process:
        assert process.wait(300) == 0, process.told.read_text()[-5000:]  # type: ignore[attr-defined]
    (folder,) = (tmp_path / RUNS).iterdir()
    assert_as_whole(folder, whole)


@pytest.mark.slow
def test_torchrun_s_last_words_are_the_traceback_of_the_first_failure(line: list[str], tmp_path: Path) -> None:
    words = [*line, *fate(rank=1, step=2)]
    with agent(tmp_path, words, "--standalone", "--nproc-per-node", "2") as process:
        assert process.wait(240) == 1
        printed = process.told.read_text()  # type: ignore[attr-defined]
    cause = printed.partition("Root Cause (first observed failure)")[2]
    assert "rank      : 1" in cause and "ValueError: met its fate" in cause


@pytest.mark.slow
def test_a_machine_that_leaves_and_comes_back_costs_no_row(line: list[str], tmp_path: Path) -> None:
    words = [*line, *fate(slow=0.5), "trainer.devices=1", "trainer.max_epochs=16"]
    node = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "9", "--rdzv-backend", "c10d"]
    node += ["--rdzv-endpoint", f"localhost:{(port := free_port())}", "--rdzv-id", "elastic"]
    node += ["--rdzv-conf", "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5"]
    folder = tmp_path / RUNS / "elastic"

    def has_stepped(ranks: int) -> bool:
        return any(f'"ranks": {ranks}' in file.read_text() for file in folder.glob("rows.*.jsonl"))

    def answers() -> bool:
        with suppress(OSError):
            socket.create_connection(("localhost", port)).close()
            return True
        return False

    with agent(tmp_path, words, *node) as stays:
        wait_for(answers, stays)  # the agents meet at the one that is there first
        with agent(tmp_path, words, *node) as leaves:
            wait_for(lambda: has_stepped(2), stays, leaves)
        wait_for(lambda: has_stepped(1), stays)
        for file in folder.glob("rows.*.jsonl"):
            file.rename(file.with_suffix(".before"))
        with agent(tmp_path, words, *node) as comes:
            wait_for(lambda: has_stepped(2), stays, comes)
            wait_for(lambda: {stays.poll(), comes.poll()} == {0}, stays, comes)
    assert (folder / "summary.json").is_file()
    steps: dict[tuple[int, int], set[int]] = {}
    for text in (text for file in folder.glob("rows.*") for text in file.read_text().splitlines()):
        said = json.loads(text)  # a step that was made again has the same rows, on any number of machines
        steps.setdefault((said["epoch"], said["step"]), set()).update(said["rows"])
    assert [step for _, step in sorted(steps)] == list(range(16 * 5))
    for epoch in range(16):
        assert Counter(row for (at, _), rows in steps.items() if at == epoch for row in rows) == Counter(range(40))
