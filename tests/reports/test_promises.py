"""LoRA's promises are marked from the runs' numbers: held, not held, not told apart, each by its interval."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import find_runs, read_run

TARGETS = {"lora": "loralight.adapters.Lora", "full": "loralight.adapters.FullFineTuning"}
COSTS: dict[str, dict[str, Any]] = {
    "lora": {
        "parameters": {"trainable": 300, "total": 20_000},
        "bytes": {"adapter": 1000, "model": 1, "peak_memory": 1},
    },
    "full": {
        "parameters": {"trainable": 20_000, "total": 20_000},
        "bytes": {"adapter": 8e4, "model": 1, "peak_memory": 2},
    },
}


def make_run(
    folder: Path,
    adapter: str,
    seed: int,
    scores: Mapping[str, float],
    *,
    gap: float = 0.1,
    seconds: float = 1.0,
    base: str = "bert",
    rows: str = "abc",
    probe: Mapping[str, Any] | None = None,
) -> None:
    (folder / ".hydra").mkdir(parents=True)
    settings = {
        "seed": seed,
        "monitor": {"metric": "validation/accuracy", "mode": "max"},
        "adapter": {"_target_": TARGETS[adapter]},
        "model": {"checkpoint": base},
        "forgetting": probe,
    }
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(settings))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"adapter={adapter}"]))
    measured = {"metrics": scores, "seed": seed, "seconds_per_step": seconds}
    data = {"digests": {"test": "test", "train": rows}}
    summary = {"task": "text_classification", "adapter": adapter, **COSTS[adapter], **measured, "data": data}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["step,train/epoch_loss,validation/loss", "4,0.9,0.9", f"9,,{0.5 + gap}", "9,0.5,", "10,,0.3"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def compared(folder: Path) -> Comparison:
    return Comparison.of([read_run(run) for run in find_runs([folder])])


def said(folder: Path) -> dict[str, list[str]]:
    """The numbers and the mark of each row of the only table, by the promise's first words."""
    ((_, *rows),) = compared(folder).promises
    return {name.partition(":")[0]: [*cells, mark] for name, mark, *cells in rows}


def pair(folder: Path, seed: int, lora: float, full: float, **changes: Sequence[Any]) -> None:
    """A run of LoRA and one of full fine-tuning; each change has both values."""
    for place, (adapter, score) in enumerate((("lora", lora), ("full", full))):
        of_run = {name: values[place] for name, values in changes.items()}
        make_run(folder / f"{adapter}{seed}", adapter, seed, {"test/accuracy": score}, **of_run)


def test_each_promise_is_marked_by_its_interval(tmp_path: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    full, behind, times = [0.90, 0.91, 0.92], [0.02, 0.021, 0.022], [0.4, 0.5, 0.45]
    for seed in range(3):
        pair(
            tmp_path, seed, full[seed] - behind[seed], full[seed], seconds=(2 * times[seed], 2.0), gap=(0.1, 0.2 + seed)
        )
    found = said(tmp_path)
    assert {name: cells[-1] for name, cells in found.items()} == {
        "few parameters": "held",
        "little memory": "held",
        "speed": "held",
        "a small file": "held",
        "quality": "not held",
        "little forgotten": "not measured",
        "a small generalisation gap": "not told apart",
    }
    assert found["few parameters"] == ["300", "20,000", "0.015 times", "held"]
    logs = [math.log(one) for one in times]
    low, high = stats.t.interval(0.95, 2, loc=sum(logs) / 3, scale=stats.sem(logs))
    expected = f"{math.exp(sum(logs) / 3):.3g} times ({math.exp(low):.3g} to {math.exp(high):.3g})"
    assert found["speed"][2] == expected
    low, high = stats.t.interval(0.95, 2, loc=0.021, scale=stats.sem(behind))
    assert found["quality"][2] == f"-0.0210 ± {(high - low) / 2:.4f}"
    assert found["a small generalisation gap"][:2] == ["0.1000", "1.2000"]


@pytest.mark.parametrize(
    ("behind", "mark"),
    [
        ([0.001, -0.001, 0.000], "held"),  # ± 0.0025, and full fine-tuning's score is 0.9
        ([0.010, -0.010, 0.000], "not told apart"),
        ([-0.030, -0.031, -0.030], "held"),  # LoRA is better
        ([0.004, 0.0041, 0.004], "not held"),  # a little, but for sure
        ([0.01], "not told apart"),
    ],
)
def test_quality_is_level_within_a_hundredth_unless_it_is_worse_for_sure(
    behind: list[float], mark: str, tmp_path: Path
) -> None:
    for seed, gain in enumerate(behind):
        pair(tmp_path, seed, 0.9 - gain, 0.9)
    assert said(tmp_path)["quality"][-1] == mark
    assert said(tmp_path)["few parameters"][-1] == "held", "counted, a single seed tells it"


@pytest.mark.parametrize("other", [{"base": ("bert", "roberta")}, {"rows": ("abc", "def")}])
def test_only_runs_of_one_base_on_the_same_rows_are_paired(other: dict[str, Any], tmp_path: Path) -> None:
    pair(tmp_path, 0, 0.9, 0.9, **other)
    assert compared(tmp_path).promises == []
    pair(tmp_path, 1, 0.9, 0.9)
    assert len(compared(tmp_path).promises) == 1


def forgotten(folder: Path, after: float, *, texts: str = "general.txt") -> None:
    """What `loralight evaluate forgetting=...` leaves in a run's folder."""
    metrics = {"forgetting/loss": after, "forgetting/loss_before": 3.0, "forgetting/loss_off": 3.0}
    found = {"probe": {"forgetting._target_": "x", "forgetting.texts": texts}, "metrics": metrics}
    (folder / "forgetting.json").write_text(json.dumps(found))


def test_what_was_measured_later_is_read_and_marked(tmp_path: Path) -> None:
    for seed in range(2):
        pair(tmp_path, seed, 0.9, 0.9)
        forgotten(tmp_path / f"lora{seed}", 3.1)
        forgotten(tmp_path / f"full{seed}", 3.5 + 0.01 * seed)
    assert said(tmp_path)["little forgotten"][-1] == "held"
    comparison = compared(tmp_path)
    assert "forgetting/loss" in comparison.beside[0] and len(comparison.groups) == 2
    *_, page = comparison.write(tmp_path / "report", "title")
    for text in (page.read_text(), (tmp_path / "report" / "report.md").read_text()):
        assert "little forgotten: loss" in text and "not held" in text and "(before 3.0000)" in text
    forgotten(tmp_path / "lora1", 3.1, texts="other.txt")
    comparison = compared(tmp_path)
    (left_out,) = [line for line in comparison.verdict() if "Forgetting of" in line]
    assert "forgetting.texts" in left_out
    assert said(tmp_path)["little forgotten"][-1] == "not told apart", "of the one pair that is left"


@pytest.mark.parametrize("content", ["[]", '{"metrics": {}}', '{"probe": {}, "metrics": {"test/accuracy": 1.0}}'])
def test_a_damaged_file_on_forgetting_is_told(content: str, tmp_path: Path) -> None:
    pair(tmp_path, 0, 0.9, 0.9)
    (tmp_path / "full0" / "forgetting.json").write_text(content)
    with pytest.raises(InputError, match=r"^E-RUN: .*full0 .*damaged"):
        compared(tmp_path)
