"""What a run costs beside its steps: Lightning with loralight's callbacks over a bare loop, same model, same batches.

python benchmarks/overhead.py [--steps 60] [--rounds 5] [override ...]

Overrides are those of `loralight train`; by default the demo of text classification. Both sides train, clip and
schedule; loralight's also measures, logs to its CSV file and writes checkpoints, as any run does. Validation, which
the bare loop lacks, is off.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from side_by_side import Row, in_turns, ratio, show
from transformers import get_scheduler

from loralight import logs
from loralight.config.build import build_data, build_task, build_trainer
from loralight.config.composition import settings_of
from loralight.data import TaskData
from loralight.training.progress import progress_callbacks
from loralight.training.task import AdapterTask

GOAL = 1.03
warnings.filterwarnings("ignore", module="lightning")  # of a folder that several runs write into


def with_lightning(config: dict[str, Any], data: TaskData, task: AdapterTask) -> Callable[[], None]:
    """A run as `loralight train` has it."""
    trainer = build_trainer(config, Path(config["logger"]["csv"]["save_dir"]), progress_callbacks(data.batch_size)[1])
    return lambda: trainer.fit(task, datamodule=data)


def bare(config: dict[str, Any], data: TaskData, task: AdapterTask) -> Callable[[], None]:
    """The loop that one would write by hand."""
    steps = config["trainer"]["max_steps"]
    task.start_accelerations_()  # as a run does
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config["optimizer"]["lr"], weight_decay=0.0, fused=True)
    schedule = get_scheduler("linear", optimizer, 0, steps)

    def loop() -> None:
        done, loader = 0, data.train_dataloader()
        for epoch in count():
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
            for batch in loader:
                optimizer.zero_grad()
                with task.accelerations.step(task.model):
                    loss = task.step(batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config["trainer"]["gradient_clip_val"])
                optimizer.step()
                schedule.step()
                done += 1
                if done == steps:
                    return

    return loop


def rows(quick: bool, overrides: list[str] | None = None, steps: int = 60, rounds: int = 5) -> list[Row]:
    """The one row of this table."""
    rounds = 3 if quick else rounds
    logs.configure()
    fixed = [
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1",
        "trainer.limit_val_batches=0",
        "monitor.metric=train/loss",
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of("train", [*(overrides or []), *fixed], Path(folder))
        data = build_data(config)
        made = {"loralight": with_lightning, "bare loop": bare}
        ready = {
            name: [make(config, data, build_task(config, data.model_arguments())) for _ in range(rounds + 1)]
            for name, make in made.items()
        }
        seconds = in_turns({name: lambda calls=calls: calls.pop()() for name, calls in ready.items()}, rounds=rounds)
    return [Row(f"{steps} steps of the demo", "bare loop", "time", ratio(seconds, "loralight", "bare loop"), GOAL)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    show(rows(False, arguments.overrides, arguments.steps, arguments.rounds), "Lightning and callbacks")


if __name__ == "__main__":
    main()
