"""The time of a training step on two processes beside one, with the same rows in a step.

    python benchmarks/processes.py --rounds 3

Each side is a run of `loralight train` on the processor, one thread in each process, in turns. A machine needs as many
free cores as there are processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from loralight.kernels.trial import processor

SETTINGS = ("probe=false", "page=false", "trainer.max_epochs=-1", "data.limit_eval_rows=32", "data.num_workers=0")


def seconds(processes: int, words: list[str], *, rows: int, steps: int) -> float:
    """The median duration of a step of ``rows`` rows, of a run of ``steps`` steps."""
    with TemporaryDirectory() as folder:
        several = ["trainer=ddp_cpu", f"trainer.devices={processes}"] if processes > 1 else ["trainer=cpu"]
        length = [f"data.global_batch_size={rows}", f"trainer.max_steps={steps}", f"hydra.run.dir='{folder}/run'"]
        command = [sys.executable, "-m", "loralight", "train", *several, *SETTINGS, *length, *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(done.stderr)
        return float(json.loads((Path(folder) / "run" / "summary.json").read_text())["seconds_per_step"])


def main() -> None:
    """Print the ratio of each round, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="settings of every run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="of an optimizer step, over all processes")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    several, ratios = given.processes, []
    print(processor())
    for turn in range(given.rounds):
        order = (1, several) if turn % 2 == 0 else (several, 1)
        took = {number: seconds(number, given.words, rows=given.rows, steps=given.steps) for number in order}
        ratios.append(took[several] / took[1])
        print(f"one process {took[1]:.3f} s, {several} processes {took[several]:.3f} s: {ratios[-1]:.2f}", flush=True)
    print(f"{several} processes take {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] of the time")


if __name__ == "__main__":
    main()
