"""Too little memory ends a run with one message, which says what to turn first."""

import re
from pathlib import Path

import pytest
import torch

from loralight.errors import InputError
from loralight.training.checkpoint import newest, verify
from loralight.training.out_of_memory import telling_of_memory

from ..warm import run_warm

# The address space is cut to what the process has, and a little: what asks for more in the batch is refused for real.
HUNGRY = """
import resource, sys
from pathlib import Path
from loralight.cli import run
from loralight.training.task import AdapterTask
import loralight.commands.train
import torch
step, calls = AdapterTask.training_step, 0
def hungry(self, *arguments):
    global calls
    calls += 1
    if calls == 8:
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + 2**28, has + 2**28))
        torch.empty(2**28)
    return step(self, *arguments)
AdapterTask.training_step = hungry
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the kernel tells no process its address space")
def test_a_run_out_of_memory_says_what_it_asked_for_and_which_settings_to_turn_and_keeps_its_checkpoints(
    tiny_run: list[str], tmp_path: Path
) -> None:
    line = ["train", *tiny_run, "trainer.max_epochs=2", "hydra.run.dir=run"]
    ended = run_warm(["-c", HUNGRY, *line], cwd=tmp_path, timeout=240)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    (message,) = re.findall(r"^loralight: E-MEMORY: .*$", ended.stderr, re.MULTILINE)
    knobs = [
        "data.batch_size=4 trainer.accumulate_grad_batches=2",
        "model.max_length=8",
        "trainer.precision=bf16-mixed",
        "fewer adapter.targets",
    ]
    places = [message.index(text) for text in ["data.batch_size=8 and model.max_length=16", "peak", *knobs]]
    assert places == sorted(places), "in the order of docs/debugging.md"
    verify(newest(tmp_path / "run"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_every_way_to_run_out_of_memory_is_told_so(error: Exception, tmp_path: Path) -> None:
    config = {"data": {"batch_size": 1}, "trainer": {"precision": "bf16-true"}, "model": {"max_length": None}}
    message = r"^E-MEMORY: .*In this order: fewer adapter\.targets\. `loralight estimate`"
    with pytest.raises(InputError, match=message), telling_of_memory(config, tmp_path):
        raise error


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), telling_of_memory({}, tmp_path):
        raise RuntimeError("shapes differ")


def test_a_run_with_a_number_of_rows_of_a_step_is_told_to_take_them_in_more_batches(tmp_path: Path) -> None:
    config = {"data": {"batch_size": 32, "global_batch_size": 64}, "trainer": {"accumulate_grad_batches": 2}}
    message = (
        r"^E-MEMORY: .*data\.global_batch_size=64: .*: trainer\.accumulate_grad_batches=4, which computes the same;"
    )
    with pytest.raises(InputError, match=message), telling_of_memory(config, tmp_path):
        raise MemoryError


def test_a_run_with_the_usual_number_of_rows_is_told_to_give_a_lower_one(tmp_path: Path) -> None:
    config = {"data": {"batch_size": None}, "trainer": {"precision": "bf16-true"}}
    message = r"^E-MEMORY: .*with the usual data\.batch_size: .*: data\.batch_size lower;"
    with pytest.raises(InputError, match=message), telling_of_memory(config, tmp_path):
        raise MemoryError
