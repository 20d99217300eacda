"""Trains a tiny task in groups of processes, which may be killed; `test_world.py` says how, and reads what is written.

Standard input is a list of runs in JSON. Each is trained in new processes, forked from this one.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MetricCollection

from loralight.adapters import Lora
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.training import AdapterTask, Step
from loralight.training.checkpoint import FolderCheckpointIO, newest
from loralight.training.optim import schedule
from loralight.training.position import Position


class Rows(TaskData):
    """Row n is n, and its number of learnt tokens: from none to four."""

    def __init__(self, *, num_rows: int, **loading: Any) -> None:
        super().__init__(**loading)
        self.num_rows = num_rows

    def load(self) -> dict[str, list[int]]:
        return {"train": list(range(self.num_rows)), "validation": list(range(5))}

    def lengths(self, split: str) -> list[int]:
        return [1 + 7 * row % 5 for row in self.splits[split]]

    def collate(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows)


class Tokens(AdapterTask):
    """A loss over the tokens of a batch's rows, of which there may be none."""

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(torch.get_default_dtype())

    def head(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, nn.Sequential)
        return [model[2]]

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def step(self, rows: Tensor) -> Step:
        tokens = rows.repeat_interleave(7 * rows % 5)
        given = torch.sin(tokens[:, None] * torch.arange(1, 7) + torch.arange(6)).to(self.model[0].weight.dtype)
        loss = F.cross_entropy(self.model(given), tokens % 3, reduction="sum")
        return Step(loss / max(len(tokens), 1), tokens, tokens, float(len(tokens)))

    def predict_batch(self, inputs: Any) -> list[dict[str, Any]]:
        return [{} for _ in inputs]


class Log(lightning.Callback):
    """Writes the rows, the loss and the learning rate of each batch, and has all processes killed at a moment.

    Args:
        file: where.
        killed_at: a number of batches of this process, or ``validation``.
    """

    def __init__(self, file: Path, killed_at: int | str | None) -> None:
        self.file, self.killed_at, self.seen, self.step = file, killed_at, 0, 0

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Tensor, batch_idx: int) -> None:
        self._meet(trainer, self.seen)
        self.seen, self.step = self.seen + 1, trainer.global_step + 1

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        counts = not trainer.datamodule.stands_in(trainer.current_epoch, batch_idx)
        loss, weight = task._epoch_loss.sums  # over all processes
        place = {"epoch": trainer.current_epoch, "step": self.step, "batch": batch_idx}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        said = {**place, "rows": batch.tolist() if counts else [], "loss": loss, "weight": weight, "rate": rate}
        said["gradient"] = torch.cat([p.grad.flatten() for p in task.parameters() if p.requires_grad]).tolist()
        with self.file.open("a") as opened:
            opened.write(json.dumps(said) + "\n")

    def on_validation_start(self, trainer: Any, task: Any) -> None:
        self._meet(trainer, "validation")

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        with self.file.open("a") as opened:
            opened.write(json.dumps({"validated": [trainer.current_epoch, trainer.global_step]}) + "\n")

    def _meet(self, trainer: Any, moment: int | str) -> None:
        if moment == self.killed_at:
            if trainer.global_rank == 0:
                print("kill", flush=True)
            time.sleep(60)


def train(run: dict[str, Any], rank: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if run["precision"] == "64-true" else torch.float32)
    folder = Path(run["folder"])
    optimizer: Any = partial(torch.optim.AdamW, lr=run["lr"])
    scheduler: Any = partial(schedule, name="linear")
    task = Tokens(adapter=Lora(targets="0", rank=2), optimizer=optimizer, scheduler=scheduler)
    checkpoints = ModelCheckpoint(
        folder / "checkpoints/recent", every_n_train_steps=run["saved_every"], filename="{step}"
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=run["ranks"],
        strategy="ddp" if run["ranks"] > 1 else "auto",
        max_epochs=run["epochs"],
        accumulate_grad_batches=run["accumulated"],
        precision=run["precision"],
        val_check_interval=run["validated"],
        num_sanity_val_steps=0,
        callbacks=[Position(), checkpoints, Log(folder / f"{run['name']}.{rank}.jsonl", run.get("killed_at"))],
        plugins=[FolderCheckpointIO(folder)],
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Rows(num_rows=run["rows"], num_workers=0, **run["data"])
    try:
        trainer.fit(task, datamodule=data, ckpt_path=newest(folder) if run["resumes"] else None)
    except InputError as error:
        (folder / f"{run['name']}.{rank}.error").write_text(str(error))
        return
    if rank == 0:
        torch.save(task.trainable_tensors(), folder / f"{run['name']}.pt")
    if run["ranks"] > 1:
        torch.distributed.destroy_process_group()


def of_rank(run: dict[str, Any], rank: int, environment: dict[str, str], told: int) -> None:
    os.dup2(told, 1)
    train(run, rank, environment)


def do(run: dict[str, Any]) -> None:
    Path(run["folder"]).mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:  # a store here would have threads, whose locks a fork copies
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(run["ranks"]),
        "LOCAL_WORLD_SIZE": str(run["ranks"]),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    hears, told = os.pipe()
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=of_rank, args=(run, rank, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, told))
        for rank in range(run["ranks"])
    ]
    [rank.start() for rank in ranks]
    os.close(told)
    with os.fdopen(hears) as opened:
        if any("kill" in line for line in opened):  # until all have closed it
            [rank.kill() for rank in ranks]
    [rank.join() for rank in ranks]
    print(run["name"], [rank.exitcode for rank in ranks], flush=True)


if __name__ == "__main__":
    for run in json.load(sys.stdin):
        do(run)
