"""Ways to do the same work, timed in turns: what else the machine does hits all of them alike, so ratios hold.

Every table of `docs/performance.md` is made by a script beside this one, whose ``rows(quick)`` gives what
`python benchmarks/bench.py` collects.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # read where a process starts


class Ratio(NamedTuple):
    """Median of paired ratios, and the quartiles beside it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


class Row(NamedTuple):
    """One line of a table: what loralight needs for some work, in units of what a peer needs."""

    work: str
    peer: str
    measure: str
    ratio: Ratio
    goal: float

    @property
    def verdict(self) -> str:
        return "pass" if self.ratio.median <= self.goal else "short"


def in_turns(ways: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the order turns round from one to the next, and a first one is not counted.

    One thread is timed by the processor time it gets, which other processes cannot take from it; several by the wall
    clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else reversed(list(ways)):
            gc.collect()
            start = clock()
            ways[name]()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], way: str, peer: str) -> Ratio:
    """What ``way`` takes in units of ``peer``, round by round."""
    ratios = [ours / theirs for ours, theirs in zip(seconds[way], seconds[peer], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(median, low, high)


def peak_memory(make: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Bytes that a call of ``make(*arguments)`` takes above what is resident before it, in a process of its own.

    A first call, which also makes an optimizer's state, is not counted. ``make`` must be a module's function. Linux
    alone has the counter. malloc gives back at once what is freed there, on every side: what it would else keep for
    later, in holes, hangs on the order of requests and hides what a step needs.
    """
    os.environ.update(_AT_ONCE)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, torch.get_num_threads(), make, arguments))
    process.start()
    for name in _AT_ONCE:
        del os.environ[name]
    sender.close()
    peak = int(receiver.recv())
    process.join()
    return peak


def _measure_peak(
    sender: Any, threads: int, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    call = make(*arguments)
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what the first call freed counts as resident
    resident = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    sender.send(1024 * (_kilobytes("VmHWM") - resident))


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def show(rows: list[Row], title: str) -> None:
    """Print a table, each row with its goal and whether it is reached."""
    table = Table("work", "peer = 1.00", "measure", "loralight", "goal", "", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.work, row.peer, row.measure, str(row.ratio), f"{row.goal:.2f}", row.verdict)
    console = Console()
    console.width = max(console.width, 130)
    console.print(table)
