"""Memory as `loralight estimate` foretells it beside what a step takes, for the four tasks' demos.

python benchmarks/estimates.py [--quick] [NAME=VALUE ...]

Above the program: a step's resident peak, less what is resident between steps beside the tensors that stay (weights,
gradients, the optimizer's state), while malloc returns what is freed at once (``MALLOC_MMAP_THRESHOLD_``). The whole
process: its resident peak over several steps, with malloc as it is. Linux alone has the counters.
"""

import argparse
import ctypes
import gc
import logging
import multiprocessing
import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import Ratio, Row, show

from loralight.adapters.base import trainable
from loralight.commands.estimate import Estimate, longest_batch
from loralight.config.build import build_data, build_task
from loralight.config.composition import compose, plain
from loralight.training.footprint import train_step

TASKS = ("text_classification", "ner", "text_generation", "image_classification")
QUICK = ("text_classification", "ner", "image_classification")
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
GOAL = 1.1


def rows(quick: bool, overrides: tuple[str, ...] = ()) -> list[Row]:
    """How far each task's estimate is from what was measured, above the program and as a whole."""
    found = []
    for name in QUICK if quick else TASKS:
        line = (f"task={name}", *overrides)
        whole, program = _in_process(_estimate, {}, line)
        above = _in_process(_measure, AT_ONCE, line, 2)[0]
        resident = _in_process(_measure, {}, line, 3 if quick else 5)[1]
        found += [
            _row(name, "above the program", above, whole - program[0] - program[1]),
            _row(name, "whole process", resident, whole),
        ]
    return found


def _row(name: str, measure: str, measured: int, estimated: int) -> Row:
    found = estimated / measured
    print(f"{name}, {measure}: estimated {estimated / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB: {found - 1:+.1%}")
    error = max(found, 1 / found)
    return Row(name, "measured", measure, Ratio(error, error, error), GOAL)


def _config(overrides: tuple[str, ...]) -> dict[str, Any]:
    config = compose("train", ["trainer=cpu", *overrides])
    config.callbacks, config.logger = {}, {}  # they know of the run's folder
    return dict(plain(config))


def _estimate(overrides: tuple[str, ...], _: int) -> tuple[int, tuple[int, int]]:
    estimate = Estimate(_config(overrides))
    sizes = estimate.sizes(estimate.data.batch_size)
    return sum(sizes.values()), (sizes["the program itself"], sizes["holes of the allocator"])


def _measure(overrides: tuple[str, ...], num_steps: int) -> tuple[int, int]:
    """The resident peak of steps after the first, above the program and as a whole."""
    config = _config(overrides)
    data = build_data(config)
    task = build_task(config, data.model_arguments())
    for tensor in [*task.model.parameters(), *task.model.buffers()]:
        tensor.data = tensor.data.clone()  # of a mapped file only what is used would be resident
    task.start_accelerations_()
    optimizer = task.make_optimizer()
    step = partial(train_step, task, optimizer, longest_batch(data, data.batch_size))
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    state = [tensor for values in optimizer.state.values() for tensor in values.values()]
    gradients = [parameter.grad for parameter in trainable(task.model).values() if parameter.grad is not None]
    stay = {id(tensor): tensor for tensor in [*task.model.parameters(), *task.model.buffers(), *state, *gradients]}
    program = _bytes("VmRSS") - sum(tensor.nbytes for tensor in stay.values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading weights takes them twice
    for _ in range(num_steps):
        step()
    peak = _bytes("VmHWM")
    return peak - program, peak


def _bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def _in_process(function: Any, environment: Mapping[str, str], overrides: tuple[str, ...], num_steps: int = 0) -> Any:
    """What a function returns in a process of its own, which is started with more in its environment."""
    os.environ.update(environment)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_call, (function, torch.get_num_threads(), overrides, num_steps))
    finally:
        for name in environment:
            del os.environ[name]


def _call(function: Any, num_threads: int, overrides: tuple[str, ...], num_steps: int) -> Any:
    torch.set_num_threads(num_threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    return function(overrides, num_steps)


def main() -> None:
    """Print each task's figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    show(
        rows(arguments.quick, tuple(arguments.overrides)),
        "memory: the greater of estimated and measured over the other",
    )


if __name__ == "__main__":
    main()
