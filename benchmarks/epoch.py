"""One epoch of classifying sentences, from the first batch to the last: beside PEFT with HF's Trainer and in Lightning.

    python benchmarks/epoch.py [--data FOLDER] [--quick] [--limit ROWS] [--seeds 0 1 2]

MiniLM in float32 on one thread, LoRA of rank 8 on every linear layer, dropout of 0.1, batches of 32 sentences that are
tokenised already. The peers pad a batch to its longest sentence, as their docs show; nobody validates or saves while
the clock runs. Batches of loralight are drawn at random like theirs, and also by its default: like lengths together.
Beside the times stands the accuracy on validation after the epoch. FOLDER as in `padding.py`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from padding import RATE, configured, make_peer, make_task
from rich.console import Console
from rich.table import Table
from side_by_side import Row, ratio, show
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from loralight.config.build import build_data, build_trainer
from loralight.data import TaskData
from loralight.training.progress import progress_callbacks
from loralight.training.task import AdapterTask

_QUICK = 384  # sentences


class Side:
    """What every side trains: the same rows from the same weights.

    Args:
        data: a folder, or None for the demo data.
        limit: rows of train; all if None.
        seed: of the order of rows and of dropout.
        grouped: sentences of like length together; loralight's own loader only.
        packed: frozen weights in oneDNN's order; loralight only.
    """

    def __init__(
        self, data: str | None, limit: int | None, seed: int, *, grouped: bool = False, packed: bool = False
    ) -> None:
        overrides = [f"data.limit_rows={'null' if limit is None else limit}", f"seed={seed}", "trainer.max_epochs=1"]
        overrides.append(f"acceleration.frozen_products.prepack={str(packed).lower()}")
        self.config = configured(data, *overrides, f"data.length_grouped={str(grouped).lower()}", "logger=csv")
        self.data: TaskData = build_data(self.config)
        self.task: AdapterTask = make_task(self.config, self.data)
        self.seed = seed


def with_loralight(side: Side, folder: Path) -> tuple[Callable[[], Any], nn.Module]:
    """As ``loralight train`` does it, bar, log and all."""
    settings = {**side.config, "trainer": {**side.config["trainer"], "limit_val_batches": 0}}
    settings["trainer"]["enable_checkpointing"] = False
    _, callbacks = progress_callbacks(side.data.batch_size)
    trainer = build_trainer(settings, folder, [*callbacks, _InTrainMode()])
    return lambda: trainer.fit(side.task, datamodule=side.data), side.task.model


def with_hf_trainer(side: Side, folder: Path) -> tuple[Callable[[], Any], nn.Module]:
    """PEFT's model in HF's Trainer, with the same rate, schedule, decay and clipping."""
    model = make_peer(side.task)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=side.data.batch_size,
        num_train_epochs=1,
        learning_rate=RATE,
        warmup_steps=0.06,
        weight_decay=0.01,
        seed=side.seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    rows: Any = side.data.splits["train"]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=side.data.collate,
        callbacks=[_HfInTrainMode()],
    )
    return trainer.train, model


def with_lightning(side: Side, folder: Path) -> tuple[Callable[[], Any], nn.Module]:
    """PEFT's model in Lightning's Trainer, with all its defaults but checkpoints."""
    model = make_peer(side.task).train()  # Lightning would leave it in evaluation mode
    rows: Any = side.data.splits["train"]
    torch.manual_seed(side.seed)
    loader = DataLoader(rows, batch_size=side.data.batch_size, shuffle=True, collate_fn=side.data.collate)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, enable_checkpointing=False, callbacks=[_InTrainMode()]
    )
    return lambda: trainer.fit(_Plain(model), loader), model


class _Plain(lightning.LightningModule):
    """As Lightning's docs write one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=RATE)


class _InTrainMode(lightning.Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        check_mode(pl_module)


class _HfInTrainMode(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        check_mode(model)


def check_mode(model: nn.Module) -> None:
    """Raise unless dropout is on: without it, the work would be less."""
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    assert drops and all(module.training for module in drops)


@torch.inference_mode()
def accuracy(model: nn.Module, data: TaskData) -> float:
    """The share of right answers on validation."""
    model.eval()
    hits = [
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1) == batch["labels"]
        for batch in data.val_dataloader()
    ]
    return float(torch.cat(hits).float().mean())


WAYS: dict[str, tuple[Callable[[Side, Path], tuple[Callable[[], Any], nn.Module]], dict[str, bool]]] = {
    "PEFT + HF Trainer": (with_hf_trainer, {}),
    "PEFT + Lightning": (with_lightning, {}),
    "loralight, random batches": (with_loralight, {}),
    "loralight, length-grouped": (with_loralight, {"grouped": True}),
    "loralight, length-grouped, prepacked": (with_loralight, {"grouped": True, "packed": True}),
}


def measure(data: str | None, limit: int | None, seeds: list[int]) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of processor time and accuracy of each way, by seed; the order turns round from one to the next."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    scores: dict[str, Any] = {name: [] for name in WAYS}
    for seed in seeds:
        for name in list(WAYS) if seed % 2 else reversed(list(WAYS)):
            make, settings = WAYS[name]
            side = Side(data, limit, seed, **settings)
            with tempfile.TemporaryDirectory() as folder:
                train, model = make(side, Path(folder))
                start = time.process_time()
                train()
                seconds[name].append(time.process_time() - start)
            scores[name].append(accuracy(model, side.data))
    return seconds, scores


def rows(
    quick: bool, data: str | None = None, limit: int | None = None, seeds: tuple[int, ...] = (0, 1, 2)
) -> list[Row]:
    """Time of an epoch; prints the accuracies beside, unless ``quick``."""
    seconds, scores = measure(data, _QUICK if quick else limit, [0] if quick else list(seeds))
    if not quick:
        show_accuracies(scores)
    grouped, random = "loralight, length-grouped", "loralight, random batches"
    pairs: list[tuple[str, str, float]] = [
        (random, "PEFT + HF Trainer", 0.40),
        (grouped, "PEFT + HF Trainer", 0.28),
        (grouped, "PEFT + Lightning", 0.30),
        (f"{grouped}, prepacked", "PEFT + HF Trainer", 0.28),
        (f"{grouped}, prepacked", "PEFT + Lightning", 0.30),
    ]
    return [
        Row(f"an epoch of sentences: {way}", peer, "processor time", ratio(seconds, way, peer), goal)
        for way, peer, goal in pairs
    ]


def show_accuracies(scores: dict[str, list[float]]) -> None:
    """Print what the epochs led to."""
    table = Table("way", "validation accuracy by seed", "mean", title="after the epoch", title_justify="left")
    for name, values in scores.items():
        table.add_row(name, ", ".join(f"{value:.4f}" for value in values), f"{statistics.mean(values):.4f}")
    Console().print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    show(rows(arguments.quick, arguments.data, arguments.limit, tuple(arguments.seeds)), "an epoch")


if __name__ == "__main__":
    main()
