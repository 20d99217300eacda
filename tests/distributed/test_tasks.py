"""Each task on several processes trains what one process does."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..training.test_position import TASKS, tiny  # noqa: F401  # a fixture

pytestmark = pytest.mark.timeout(900)


def epochs(run: Path) -> list[float]:
    """The mean loss over all items of each epoch."""
    lines = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return [float(line["train/epoch_loss"]) for line in lines if line.get("train/epoch_loss")]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(("ranks", "accumulated"), [(2, 1), (4, 2)])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_on_several_processes_what_it_does_on_one(
    task: str,
    ranks: int,
    accumulated: int,
    tiny: Callable[[str], list[str]],  # noqa: F811
    in_process: Callable[..., int],
    tmp_path: Path,
) -> None:
    line = [*tiny(task), "data.global_batch_size=16", "trainer.max_epochs=2"]
    precise = task != "image_classification"  # whose images are in single precision
    line += ["trainer.precision=64-true"] if precise else []
    line += ["task.base_dropout=false", "adapter.dropout=0", "probe=false", "trainer.num_sanity_val_steps=0"]
    line = [word for word in line if "mixup" not in word]  # which mixes the rows of a process
    assert in_process("train", *line, "trainer=cpu", "hydra.run.dir=one") == 0
    several = [f"trainer.devices={ranks}", f"trainer.accumulate_grad_batches={accumulated}"]
    assert in_process("train", *line, "trainer=ddp_cpu", *several, "hydra.run.dir=several") == 0
    runs = [tmp_path / "several", tmp_path / "one"]
    found, expected = map(epochs, runs)
    assert len(expected) == 2 and found == pytest.approx(expected, rel=1e-10 if precise else 1e-5)
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["steps"] == summaries[1]["steps"]
    assert summaries[0]["metrics"] == pytest.approx(summaries[1]["metrics"], abs=1e-5)  # in single precision
    one, other = (load_file(run / "adapter/adapter_model.safetensors") for run in runs)
    within = 1e-7 if precise else 1e-3  # Adam divides by small numbers
    assert all((one[name] - tensor).abs().max() < within for name, tensor in other.items())
