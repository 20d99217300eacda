"""The same run on any number of processes, also if it is killed and goes on with another number of them."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ..warm import run_warm

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes"), pytest.mark.timeout(600)]

ROWS = 53  # in steps of 12 five are left over
PLAIN = {"epochs": 2, "rows": ROWS, "precision": "64-true", "validated": 1.0, "accumulated": 1, "resumes": False}
SEVERAL = Path(__file__).with_name("several.py")


def run(name: str, ranks: int, folder: str | None = None, **settings: Any) -> dict[str, Any]:
    data = settings.pop("data", {"global_batch_size": 12})
    return {**PLAIN, "name": name, "ranks": ranks, "folder": folder or name, "data": data, **settings}


def do(folder: Path, *runs: dict[str, Any]) -> None:
    done = run_warm([str(SEVERAL)], input=json.dumps(runs), cwd=folder, timeout=550)
    assert done.returncode == 0, done.stderr[-9000:]
    ended = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.endswith("]"))
    for each in runs:
        code = -9 if "killed_at" in each else 0
        assert ended[each["name"]] == str([code] * each["ranks"]), done.stderr[-9000:]


class Done:
    """What a run has written, up to its step of some number.

    Attributes:
        rows: those of each step, over all processes, by epoch and the step's number.
        losses: the sums of loss and weight over the epoch so far, after each step, as every process has them.
        rates: the learning rate after each step.
        validated: the epochs and steps after which it has validated.
    """

    def __init__(self, folder: Path, name: str, *, until: int = 10**9) -> None:
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.losses: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self.rates: dict[int, float] = {}
        texts = [file.read_text() for file in sorted(folder.glob(f"{name}.*.jsonl"))]
        for text in texts:
            lines = [json.loads(line) for line in text.splitlines()]
            ends = {line["step"]: line for line in lines if "rows" in line}  # the last batch of each step
            for line in (line for line in lines if "rows" in line and line["step"] <= until):
                self.rows.setdefault((line["epoch"], line["step"]), []).extend(line["rows"])
            for step, line in ends.items():
                if step <= until:
                    self.losses.setdefault((line["epoch"], step), []).append((line["loss"], line["weight"]))
                    self.rates[step] = line["rate"]
        said = [json.loads(line) for line in texts[0].splitlines()]
        self.validated = [tuple(line["validated"]) for line in said if "validated" in line]

    def steps(self) -> dict[tuple[int, int], list[int]]:
        return {place: sorted(rows) for place, rows in self.rows.items()}

    def rows_of_epochs(self) -> list[list[int]]:
        epochs = sorted({epoch for epoch, _ in self.rows})
        return [sorted(row for (at, _), rows in self.rows.items() if at == epoch for row in rows) for epoch in epochs]
