"""Folders of finished runs with the answers that they have kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralight.reports.comparison import Comparison
from loralight.reports.runs import find_runs, read_run
from loralight.training.answers_file import FILE, OF_VALIDATION, write


def make_run(
    folder: Path,
    given: Sequence[Any],
    right: Sequence[Any],
    *,
    kind: str = "label",
    labels: Sequence[str] = ("bad", "good"),
    adapter: str = "lora",
    seed: int = 0,
    accuracy: float = 0.5,
    inputs: Sequence[Any] = (),
    confidences: Sequence[float] = (),
    digest: str = "abc",
    split: str = "test",
) -> Path:
    """A finished run's folder, with answers to a split."""
    (folder / ".hydra").mkdir(parents=True)
    settings = {"seed": seed, "monitor": {"metric": "validation/accuracy", "mode": "max"}}
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(settings))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"adapter={adapter}"]))
    summary = {
        "task": "text_classification",
        "adapter": adapter,
        "metrics": {"test/accuracy": accuracy, "validation/accuracy": accuracy},
        "parameters": {"trainable": 1000 * len(adapter), "total": 100_000},
        "bytes": {"adapter": 4000, "model": 400_000, "peak_memory": 10**9},
        "seconds_per_step": 0.05,
        "seed": seed,
        "data": {"digests": {"test": "abc", "validation": "def"}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text("step,validation/accuracy\n4,0.7\n9,0.8\n10,0.8\n")
    lines = []
    for row, answers in enumerate(zip(given, right, strict=True)):
        line = {"row": row, **dict(zip(("given", "right"), answers, strict=True))}
        lines.append(line | ({"input": inputs[row]} if inputs else {}))
        lines[-1] |= {"confidence": confidences[row]} if confidences else {}
    digest = "def" if split == "validation" else digest
    head = {"split": split, "kind": kind, "labels": list(labels), "rows": len(lines), "digest": digest}
    write(folder / (OF_VALIDATION if split == "validation" else FILE), head, lines)
    return folder


def compared(*folders: Path) -> Comparison:
    return Comparison.of([read_run(run) for run in find_runs(folders)])


def page_of(comparison: Comparison, folder: Path) -> str:
    """The text of a comparison's page."""
    return comparison.write(folder, "a comparison")[-1].read_text(encoding="utf-8")
