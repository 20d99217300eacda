"""Jobs of a sweep that run beside each other have a GPU each, as far as there are enough."""

import os
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from loralight.commands import gpus
from loralight.commands.sweep import take_gpu

from ..warm import CONTEXT, _start

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


def take(folder: Path, here: Connection, count: int) -> None:
    """A job in a process of its own, on a machine with some GPUs; it lasts until it is told."""
    torch.cuda.device_count = lambda: count
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    for _ in range(2):  # a later job of the same process keeps its GPU
        gpus.take_one(folder)
        torch.cuda.device_count = lambda: 1
        here.send(os.environ["CUDA_VISIBLE_DEVICES"])
    here.recv()


class Job:
    def __init__(self, folder: Path) -> None:
        self.pipe, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=take, args=(folder, there, 2))
        _start(self.process)
        there.close()
        assert self.pipe.poll(60), f"job ended: {self.process.exitcode}"
        self.gpu, again = self.pipe.recv(), self.pipe.recv()
        assert again == self.gpu

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def test_a_job_gets_the_gpu_that_the_fewest_have_until_its_process_ends(tmp_path: Path) -> None:
    jobs = [Job(tmp_path) for _ in range(3)]
    try:
        assert [job.gpu for job in jobs] == ["0", "1", "0"]
        jobs[1].kill()
        jobs.append(Job(tmp_path))
        assert jobs[-1].gpu == "1"
    finally:
        for job in jobs:
            job.kill()


@pytest.mark.parametrize(
    ("mode", "launcher", "trainer", "is_given"),
    [
        (RunMode.MULTIRUN, JOBLIB, {"devices": 1}, True),
        (RunMode.MULTIRUN, JOBLIB, {"devices": 2}, False),
        (RunMode.MULTIRUN, JOBLIB, {"devices": 1, "accelerator": "cpu"}, False),
        (RunMode.MULTIRUN, "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", {}, False),
        (RunMode.RUN, JOBLIB, {"devices": 1}, False),
    ],
)
def test_gpus_are_given_to_jobs_of_joblib_alone(
    mode: RunMode,
    launcher: str,
    trainer: dict[str, Any],
    is_given: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hydra = OmegaConf.create({"mode": mode, "launcher": {"_target_": launcher}, "sweep": {"dir": str(tmp_path)}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    given: list[Path] = []
    monkeypatch.setattr(gpus, "take_one", given.append)
    take_gpu(trainer)
    assert given == ([tmp_path] if is_given else [])


def test_a_process_with_one_gpu_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: 1, is_initialized=lambda: False))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus.take_one(tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not list(tmp_path.iterdir())
