"""How fast the command answers, and gets to work. Medians of several cold processes.

python benchmarks/startup.py [--runs 7] [--work 3]

Goals are in CPU seconds of a quiet core; a busy machine shows up to twice as many. Work is a prediction for a sentence,
and training up to the end of the first step, both with the demo's model. The goal of the first step is one without the
linear probe. With the default settings, a probe reads the demo's 1,000 rows before that step; this has no goal.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

LORALIGHT = ["-m", "loralight"]
COMMANDS = {
    "--help": (["--help"], 0.3),
    "train --cfg job": (["train", "--cfg", "job"], 1.0),
    "a misspelled setting": (["train", "adapter.rnk=8"], 1.0),
    "a missing file": (["train", "data.train=nowhere.csv"], 2.0),
    "a missing column": (["train", "data.train=rows.jsonl"], 2.0),
    "a missing model": (["train", "model.checkpoint=./nowhere"], 2.0),
    "tasks": (["tasks"], 1.0),
}
FIRST_STEP = """
import os, sys, torch
step = torch.optim.AdamW.step
def first(*args, **settings):
    step(*args, **settings)
    os._exit(0)
torch.optim.AdamW.step = first
from loralight.cli import run
sys.exit(run(sys.argv[1:]))
"""


def main() -> None:
    """Time each command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--work", type=int, default=3, help="runs of predict and of the first step")
    given = parser.parse_args()
    table = Table("loralight ...", "seconds", "CPU seconds", "least", "most", "goal", "")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.jsonl").write_text('{"text": "a fine film", "stars": 1}\n')
        answers = {name: ([*LORALIGHT, *line], goal) for name, (line, goal) in COMMANDS.items()}
        add_rows(table, answers, given.runs, folder)
        if given.work:
            cpu = "trainer=cpu"
            seconds([*LORALIGHT, "train", cpu, "debug=fast", "hydra.run.dir=run"], folder)
            work = {
                "predict, one sentence": ([*LORALIGHT, "predict", "run=run", "input=-", "device=cpu"], 8.0),
                "train probe=false, the first step": (["-c", FIRST_STEP, "train", cpu, "probe=false"], 10.0),
                "train, the first step": (["-c", FIRST_STEP, "train", cpu], None),
            }
            add_rows(table, work, given.work, folder)
    Console().print(table)


def add_rows(table: Table, commands: Mapping[str, tuple[list[str], float | None]], runs: int, folder: str) -> None:
    """Add the medians of each command, and whether they reach its goal if it has one."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs):  # interleaved: a busy moment of the machine hits all alike
        for name, (line, _goal) in commands.items():
            found[name].append(seconds(line, folder))
    for name, (_, goal) in commands.items():
        wall, cpu = zip(*found[name], strict=True)
        middle = statistics.median(cpu)
        spread = [f"{value:.2f}" for value in (statistics.median(wall), middle, min(cpu), max(cpu))]
        reached = ("none", "") if goal is None else (f"{goal:.2f}", "reached" if middle < goal else "short")
        table.add_row(name, *spread, *reached)


def seconds(line: list[str], folder: str) -> tuple[float, float]:
    """The seconds on the clock and those of the processor that Python takes for a command line.

    Bytecode is kept, as an installed program has it, so the first run of several is slower.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *line],
        cwd=folder,
        env=environment,
        input=b"a fine film\n",
        capture_output=True,
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
