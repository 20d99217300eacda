"""How fast the command answers: help, the composed config, a misspelled setting. Medians of several cold processes.

python benchmarks/startup.py [--runs 7]
"""

import argparse
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "--help": (["--help"], 0.3),
    "train --cfg job": (["train", "--cfg", "job"], 1.0),
    "a misspelled setting": (["train", "adapter.rnk=8"], 1.0),
    "a missing file": (["train", "data.train=nowhere.csv"], 2.0),
    "a missing model": (["train", "model.checkpoint=./nowhere"], 2.0),
    "tasks": (["tasks"], 1.0),
}


def main() -> None:
    """Time each command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):  # interleaved: a busy moment of the machine hits all alike
        for name, (arguments, _goal) in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "loralight", *arguments], capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - start)
    table = Table("loralight ...", "median", "least", "most", "goal", "")
    for name, (_, goal) in COMMANDS.items():
        median = statistics.median(seconds[name])
        spread = [f"{value:.2f} s" for value in (median, min(seconds[name]), max(seconds[name]), goal)]
        table.add_row(name, *spread, "reached" if median < goal else "short")
    Console().print(table)


if __name__ == "__main__":
    main()
