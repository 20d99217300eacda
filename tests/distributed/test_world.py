"""The same run on any number of processes, also if it is killed and goes on with another number of them."""

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ..warm import run_warm

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes"), pytest.mark.timeout(600)]

ROWS = 53  # in steps of 12 five are left over
PLAIN = {"epochs": 2, "rows": ROWS, "lr": 0.05, "precision": "64-true", "validated": 1.0, "accumulated": 1}
PLAIN |= {"saved_every": 1}
SEVERAL = Path(__file__).with_name("several.py")


def run(name: str, ranks: int, folder: str | None = None, **settings: Any) -> dict[str, Any]:
    """A run for `several.py`; one that has the folder of another goes on with it."""
    settings = {**PLAIN, "data": {"global_batch_size": 12}, **settings}
    return {**settings, "name": name, "ranks": ranks, "folder": folder or name, "resumes": folder is not None}


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
        gradients: those of each step, of the first process.
        validated: the epochs and steps after which it has validated.
    """

    def __init__(self, folder: Path, name: str, *, until: int = 10**9) -> None:
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.losses: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self.rates: dict[int, float] = {}
        self.gradients: dict[int, list[float]] = {}
        texts = [file.read_text() for file in sorted(folder.glob(f"{name}.*jsonl"))]
        for text in texts:
            lines = [json.loads(line) for line in text.splitlines()]
            ends = {line["step"]: line for line in lines if "rows" in line}  # the last batch of each step
            for line in (line for line in lines if "rows" in line and line["step"] <= until):
                self.rows.setdefault((line["epoch"], line["step"]), []).extend(line["rows"])
            for step, line in ends.items():
                if step <= until:
                    self.losses.setdefault((line["epoch"], step), []).append((line["loss"], line["weight"]))
                    self.rates[step] = line["rate"]
                    self.gradients.setdefault(step, line["gradient"])
        said = [json.loads(line) for line in texts[0].splitlines()]
        self.validated = [tuple(line["validated"]) for line in said if "validated" in line]

    def steps(self) -> dict[tuple[int, int], list[int]]:
        return {place: sorted(rows) for place, rows in self.rows.items()}

    def rows_of_epochs(self) -> list[list[int]]:
        epochs = sorted({epoch for epoch, _ in self.rows})
        return [sorted(row for (at, _), rows in self.rows.items() if at == epoch for row in rows) for epoch in epochs]


def chained(
    folder: Path, *names: str
) -> tuple[dict[tuple[int, int], list[int]], dict[tuple[int, int], Any], list[Any]]:
    """Rows, losses and validations of a run that was killed and went on, of each step as it is in the end."""
    rows: dict[tuple[int, int], list[int]] = {}
    losses: dict[tuple[int, int], Any] = {}
    validated: list[Any] = []
    for number, name in enumerate(names):
        after = Done(folder, names[number + 1]) if number + 1 < len(names) else None
        done = Done(folder, name, until=min(step for _, step in after.rows) - 1 if after else 10**9)
        assert not rows.keys() & done.rows.keys()
        rows, losses = rows | done.steps(), losses | {place: sums[0] for place, sums in done.losses.items()}
        assert all(sums == [sums[0]] * len(sums) for sums in done.losses.values())  # on all processes
        validated += done.validated
    return rows, losses, validated


def close(losses: Any, expected: Any, within: float) -> None:
    assert losses.keys() == expected.keys()
    for place, sums in losses.items():
        assert sums == pytest.approx(expected[place], rel=within), place


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt")
    return found


@pytest.mark.parametrize(("precision", "within"), [("64-true", 1e-13), ("32-true", 1e-6)])
def test_any_number_of_processes_and_accumulated_batches_train_what_one_does(
    precision: str, within: float, tmp_path: Path
) -> None:
    ways = {"two": (2, 1), "three": (3, 2), "four": (4, 3), "alone": (1, 6)}
    if precision == "32-true":
        ways = {"two": (2, 3), "four": (4, 1)}
    runs = [run(name, ranks, accumulated=number, precision=precision) for name, (ranks, number) in ways.items()]
    do(tmp_path, run("one", 1, precision=precision), *runs)
    steps, losses, validated = chained(tmp_path / "one", "one")
    assert [len(rows) for rows in Done(tmp_path / "one", "one").rows_of_epochs()] == [ROWS, ROWS]
    for name in ways:
        found = chained(tmp_path / name, name)
        assert found[0] == steps and found[2] == validated
        close(found[1], losses, within)
        torch.testing.assert_close(
            weights(tmp_path / name, name), weights(tmp_path / "one", "one"), rtol=0, atol=10 * within
        )


@pytest.mark.parametrize("epochs", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_gradients_are_those_of_one_process_whatever_each_has_to_learn_from(epochs: int, tmp_path: Path) -> None:
    settings = {"lr": 1e-12, "epochs": epochs, "rows": 113, "saved_every": 1000}  # the weights stay as they are
    do(tmp_path, run("one", 1, **settings), run("two", 2, **settings), run("four", 4, accumulated=3, **settings))
    expected = Done(tmp_path / "one", "one").gradients
    assert len(expected) == 10 * epochs
    for name, ranks in (("two", 2), ("four", 4)):
        done = Done(tmp_path / name, name)
        for step, gradient in done.gradients.items():
            assert gradient == pytest.approx(expected[step], rel=0, abs=1e-14)
        shares = [Done(tmp_path / name, f"{name}.{rank}").rows for rank in range(ranks)]
        assert any(not any(7 * row % 5 for row in rows) for share in shares for rows in share.values())  # no token


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, 1), (1, 3)),
        ((2, 3), (3, 1)),
        ((1, 1), (2, 2)),
        *(
            pytest.param((first, 12 // first), (second, accumulated), marks=pytest.mark.slow)
            for first, second in itertools.product((1, 2, 3, 4), repeat=2)
            for accumulated in (1, 12 // second)
        ),
    ],
)
def test_a_killed_run_goes_on_with_the_same_steps_on_any_number_of_processes(
    first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    (ranks, accumulated), (later, then) = first, second
    killed = 2 * accumulated + (accumulated > 1)  # in the epoch's third step, also amid of its batches
    do(
        tmp_path,
        run("whole", 1),
        run("killed", ranks, accumulated=accumulated, killed_at=killed),
        run("on", later, "killed", accumulated=then),
    )
    steps, losses, validated = chained(tmp_path / "whole", "whole")
    found = chained(tmp_path / "killed", "killed", "on")
    assert min(step for _, step in Done(tmp_path / "killed", "on").rows) == 3
    assert found[0] == steps and found[2] == validated
    close(found[1], losses, 1e-12)
    assert Done(tmp_path / "killed", "on").rates[10] == 0.0


def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been_on_as_many_processes(tmp_path: Path) -> None:
    do(tmp_path, run("whole", 2), run("killed", 2, killed_at=7), run("on", 2, "killed"))
    assert chained(tmp_path / "killed", "killed", "on") == chained(tmp_path / "whole", "whole")
    one, other = weights(tmp_path / "killed", "on"), weights(tmp_path / "whole", "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


PAIRS = itertools.product((1, 2, 3, 4), repeat=2)


@pytest.mark.parametrize(
    ("first", "second", "killed"),
    [
        (2, 1, 3),
        (2, 3, 5),
        (3, 1, "validation"),
        (1, 4, "validation"),
        *(pytest.param(*pair, killed, marks=pytest.mark.slow) for pair in PAIRS for killed in (3, 4, 7)),
    ],
)
def test_steps_of_another_size_lose_no_row_and_take_none_twice(
    first: int, second: int, killed: int | str, tmp_path: Path
) -> None:
    settings = {"data": {"batch_size": 4}, "accumulated": 2, "rows": 71}
    do(tmp_path, run("killed", first, killed_at=killed, **settings), run("on", second, "killed", **settings))
    rows, _, validated = chained(tmp_path / "killed", "killed", "on")
    for epoch in range(2):
        assert sorted(row for (at, _), step in rows.items() if at == epoch for row in step) == list(range(71))
    on = Done(tmp_path / "killed", "on")
    last = max(step for _, step in rows)
    # the checkpoint of an epoch's last step is from before its validation, which is then done again
    assert list(dict.fromkeys(epoch for epoch, _ in validated)) == [0, 1] and validated[-1] == (1, last)
    assert max(map(len, on.rows.values())) == 8 * second
    whole = -(-71 // (8 * second))  # steps of an epoch
    falls = [before - after for before, after in itertools.pairwise(on.rates.values())]
    assert on.rates[last] == pytest.approx(0, abs=1e-12)
    assert falls == pytest.approx([0.05 / (2 * whole)] * len(falls))  # the schedule ends where the rows do


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_ten_times_on_changing_numbers_of_processes_ends_as_if_it_had_not_been(
    seed: int, tmp_path: Path
) -> None:
    choices = random.Random(seed)
    runs = []
    for number in range(11):
        ranks = choices.choice([1, 2, 4])
        accumulated = choices.choice([1, 3])
        killed = (
            {"killed_at": accumulated * choices.randint(1, 2) + choices.randrange(accumulated)} if number < 10 else {}
        )
        folder = "killed" if number else None
        runs.append(run(f"part{number}", ranks, folder, accumulated=accumulated, epochs=6, **killed))
    runs[0]["folder"] = "killed"
    do(tmp_path, run("whole", 1, epochs=6), *runs)
    found = chained(tmp_path / "killed", *(each["name"] for each in runs))
    steps, losses, validated = chained(tmp_path / "whole", "whole")
    assert found[0] == steps and list(dict.fromkeys(map(tuple, found[2]))) == validated
    close(found[1], losses, 1e-9)
