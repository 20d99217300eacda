"""The test F1 of finished runs of named entity recognition, beside seqeval's on the same predictions.

python benchmarks/entity_f1.py runs/beside_peft/seed0 runs/beside_peft/seed1
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2

from loralight.artifacts.loading import load
from loralight.artifacts.run_folder import read_config
from loralight.config.build import build_data
from loralight.tasks.ner.module import Ner


@torch.inference_mode()
def both(run: Path) -> tuple[float, float]:
    """F1 by the task's metric and by seqeval's strict mode, of the run's best checkpoint."""
    task, data = load(run, device="cpu"), build_data(read_config(run))
    assert isinstance(task, Ner)
    scores = task.metrics()
    targets: list[list[str]] = []
    predictions: list[list[str]] = []
    for batch in data.test_dataloader():
        step = task.step(batch)
        scores.update(step.predictions, step.targets)
        for found, true in zip(step.predictions.tolist(), step.targets.tolist(), strict=True):
            words = [place for place, tag in enumerate(true) if tag >= 0]
            targets.append([task.tags[true[place]] for place in words])
            predictions.append([task.tags[found[place]] for place in words])
    judged = precision_recall_fscore_support(targets, predictions, average="micro", scheme=IOB2, zero_division=0)
    return float(scores.compute()["f1"]), float(judged[2])


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    table = Table("run", "loralight", "seqeval", "difference")
    for run in parser.parse_args().runs:
        ours, theirs = both(run)
        table.add_row(str(run), f"{ours:.6f}", f"{theirs:.6f}", f"{ours - theirs:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
