"""Samples and scores of a model, as a line of JSON before training and at each validation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from loralight.logs import cut

FILE = "samples.jsonl"


def append(folder: Path, *, step: int, scores: Mapping[str, float], samples: Sequence[Mapping[str, str]]) -> None:
    """Add a line on the model after ``step`` optimizer steps; lines of this and later steps are replaced.

    Args:
        samples: prompts, with the model's text and the data's.
    """
    earlier = [line for line in read(folder) if line["step"] < step]  # a resumed run repeats steps
    lines = [*earlier, {"step": step, "scores": dict(scores), "samples": [dict(sample) for sample in samples]}]
    (folder / FILE).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines in a run's folder so far."""
    file = folder / FILE
    if not file.is_file():
        return []
    # splitlines() would also split at characters that a text may hold, such as U+2028
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def scores_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Validation scores of the pretrained and the trained model."""
    table = Table(title="validation, before training and after", title_justify="left")
    table.add_column("metric")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for name in sorted(before.keys() & after.keys()):
        table.add_row(name, f"{before[name]:.4f}", f"{after[name]:.4f}")
    return table


def samples_table(before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> Table:
    """Continuations of the same prompts side by side."""
    table = Table(title="samples, before training and after", title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after", "in the data"):
        table.add_column(column, overflow="fold", ratio=1)
    for then, now in zip(before, after, strict=True):
        texts = (then["prompt"], then["written"], now["written"], now["reference"])
        table.add_row(*(cut(text.strip()) for text in texts))
    return table
