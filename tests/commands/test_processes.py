"""Runs in processes of their own. What a killed command leaves is tested with `loralight tune`."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loralight import logs
from loralight.commands.processes import Processes, is_of_machine


def test_a_run_that_is_enough_is_told_to_stop_and_leaves_a_checkpoint(tiny_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    has_begun = folder.joinpath("checkpoints").exists
    error = Processes(1).finish([*tiny_run, "probe=false", "trainer.max_epochs=1000"], folder, is_enough=has_begun)
    assert error is None and list(folder.rglob("manifest.json"))
    assert not (folder / "summary.json").exists()


def test_a_run_that_is_killed_failed_by_the_machine_and_not_by_its_settings(tmp_path: Path) -> None:
    processes = Processes(1)

    def kill() -> bool:
        for process in processes._running:
            os.kill(process.pid, signal.SIGKILL)
        return False

    error = processes.train(["trainer.max_epochs=1000"], tmp_path / "run.log", is_enough=kill)
    assert error is not None and error.startswith("exit code -9") and is_of_machine(error)


def test_a_run_begins_once_a_place_is_free_and_a_finished_one_does_not_begin(tmp_path: Path) -> None:
    processes, free = Processes(1), list[bool]()

    def begin() -> None:
        free.append(not processes._running and processes._places.empty())

    with ThreadPoolExecutor(2) as pool:
        errors = [
            pool.submit(processes.finish, ["adapter=lorra"], tmp_path / name, begin=begin) for name in ("one", "other")
        ]
        assert all("lorra" in str(error.result()) for error in errors) and free == [True, True]
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").touch()
    assert processes.finish([], tmp_path / "done", begin=begin) is None and len(free) == 2


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        ("exit code 143: loralight: stopped by SIGTERM", True),
        ("exit code 2: loralight: E-MEMORY: allocating 2 GB failed", True),
        ("exit code 2: loralight: E-DISK: runs: No space left on device", True),
        ("exit code 1: process 1 was killed by SIGKILL", True),
        ("exit code 2: loralight: E-RANK: adapter.rank is 4096", False),
        ("exit code 1: ValueError: 143: a plugin's own", False),
        ("there is no validation/accuracy", False),
    ],
)
def test_an_error_tells_whether_the_same_run_may_do_well_next_time(error: str, is_so: bool) -> None:
    assert is_of_machine(error) is is_so


def test_while_a_run_is_timed_the_other_places_train(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    threads, processes, failed = torch.get_num_threads(), Processes(2), list[object]()
    with processes.busy(tiny_run) as seconds_of_short_run:
        assert torch.get_num_threads() == 3
        (other,) = processes._running
        assert other.poll() is None, "one that cannot train has ended once it is waited for"
        monkeypatch.setattr(logs.logger, "warning", lambda *told: failed.append(told))
        assert seconds_of_short_run([*tiny_run, "probe=false"], tmp_path / "timed") > 0 and not failed
        assert seconds_of_short_run(["adapter=lorra"], tmp_path / "timed") > 0 and "lorra" in str(failed)
    assert other.poll() == -signal.SIGKILL and not processes._running
    assert torch.get_num_threads() == threads and processes._places.qsize() == 2
    assert not list(tmp_path.iterdir())


def test_each_place_has_one_of_the_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for named, wanted in ((None, {"0", "1"}), ("5,GPU-8932f937", {"5", "GPU-8932f937"})):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        processes = Processes(None)
        assert processes.jobs == 2
        assert {processes._places.get()["CUDA_VISIBLE_DEVICES"] for _ in range(2)} == wanted
