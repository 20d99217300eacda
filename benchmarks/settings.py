"""What settings do to a training step: one way or several, in turns with none of them, on the same batches.

    python benchmarks/settings.py trainer.precision=bf16-mixed
    python benchmarks/settings.py "adapter.rank=64 optimizer.fused=false" compile=true --given task=ner data.path=FOLDER

A way is words of `loralight train`; --given are words of every way, by default the demo's. A step is forward, backward,
clipping and the optimizer's, as a run makes them, in one thread.
"""

import argparse
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import in_turns, ratio

from loralight import logs
from loralight.commands.trial import Trial
from loralight.config.composition import settings_of
from loralight.config.own_data import with_own_data

PEER = "as given"
_WARM_UP = 3  # steps


def stepper(trial: Trial, batches: Iterable[Any]) -> Callable[[], float]:
    """Makes the next step at each call."""
    rest = cycle(batches)
    for _ in range(_WARM_UP):
        trial.step(next(rest))
    return lambda: trial.step(next(rest))


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", metavar="WORDS")
    parser.add_argument("--given", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure()
    words = {PEER: [], **{way: way.split() for way in given.ways}}
    trials = {
        way: Trial(dict(settings_of("train", with_own_data(["trainer=cpu", *given.given, *own]), Path())))
        for way, own in words.items()
    }
    batches = list(islice(iter(trials[PEER].data.train_dataloader()), given.rounds + 1))
    seconds = in_turns({way: stepper(trial, batches) for way, trial in trials.items()}, rounds=given.rounds)
    table = Table("way", "step", "time, as given = 1.00")
    for way in given.ways:
        step = sorted(seconds[way])[given.rounds // 2]
        table.add_row(way, f"{1e3 * step:.0f} ms", str(ratio(seconds, way, PEER)))
    Console().print(table)


if __name__ == "__main__":
    main()
