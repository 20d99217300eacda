"""A program: trains tiny models with whole weights in one process, then sharded over two, and saves what it saw.

``sharded.py FOLDER CASES``: for each case, a name with overrides in JSON, ``FOLDER/NAME.alone.pt`` and
``FOLDER/NAME.pt`` hold gradients, losses, tensors, the checkpoint and metrics, or the message that refused it.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import nn

from loralight.adapters.disabled import disabled
from loralight.config.build import make
from loralight.config.composition import compose, plain
from loralight.errors import InputError
from loralight.models.shards import is_sharded, part, whole
from loralight.testing.adapters import TinyBert, batch_of
from loralight.training import Step
from loralight.training.checkpoint import FolderCheckpointIO

SIZES = (4, 7, 5, 8)  # rows of the training batches, of all processes
VALIDATION = ((3, 5, 2), (4, 6))  # rows of each process's batches: the second has one fewer


class Quiet(TinyBert):
    """Without dropout, whose masks differ by process."""

    def build_model(self) -> Any:
        model = super().build_model()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model


class Spoilt(Quiet):
    """With a loss that is no number in the step of 5 rows, in the process that has the first of them."""

    def step(self, batch: dict[str, torch.Tensor]) -> Step:
        step = super().step(batch)
        is_third = self.training and batch["input_ids"][0].equal(batch_of(SIZES[2])["input_ids"][0])
        return step._replace(loss=step.loss * float("nan")) if is_third else step


class Compared(Quiet):
    """With a pass of the base before that of the adapted model, and a loss from both."""

    def step(self, batch: dict[str, torch.Tensor]) -> Step:
        with torch.no_grad(), disabled(self.model):
            base = super().step(batch).predictions
        step = super().step(batch)
        return step._replace(loss=step.loss + (step.predictions - base).square().mean())


class Batches(list):
    """A loader; Lightning would take a plain list for several loaders."""


class Seen(lightning.Callback):
    """The gradients and the loss of each step, and the elements that a process holds."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.held = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, task: Any, *_: Any) -> None:
        if trainer.global_step > len(self.losses):
            self.gradients.append({name: whole(p.grad).clone() for name, p in task.learning.parameters.items()})
            self.losses.append(task.epoch_loss)
        self.held = sum(part(parameter).numel() for parameter in task.model.parameters())


def train(settings: list[str], folder: Path, *, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    tasks = {"spoilt": Spoilt, "compared": Compared}
    composed = compose("train", settings)
    config = {name: plain(composed[name]) for name in ("adapter", "optimizer", "acceleration", "trainer")}
    torch.manual_seed(0)
    task = tasks.get(folder.name, Quiet)(
        adapter=make(config["adapter"]),
        optimizer=make(config["optimizer"]),
        accelerations={name: make(node) for name, node in config["acceleration"].items()},
    )
    seen, settings_of = Seen(), config["trainer"]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else make(settings_of["strategy"]),
        precision=settings_of["precision"],
        accumulate_grad_batches=settings_of["accumulate_grad_batches"],
        gradient_clip_val=0.1,
        max_epochs=1,
        num_sanity_val_steps=2,
        callbacks=[seen],
        plugins=[FolderCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = Batches({name: rows[rank::ranks] for name, rows in batch_of(size).items()} for size in SIZES)
    held_out = [size for sizes in VALIDATION for size in sizes] if ranks == 1 else VALIDATION[rank]
    trainer.fit(task, batches, Batches(map(batch_of, held_out)))
    trainer.save_checkpoint(folder / "checkpoint")
    before = {name: whole(tensor).clone() for name, tensor in task.trainable_tensors().items()}
    saved = FolderCheckpointIO().load_checkpoint(folder / "checkpoint")
    answers = task.predict([[5, 6, 7], [8, 9, 10]])
    draw = torch.Generator().manual_seed(0)  # both sides load the same: what training rounds has no part in it
    given = {name: (torch.randn(one.shape, generator=draw) / 3).to(one) for name, one in saved["state_dict"].items()}
    task.load_trainable(given, "tensors drawn at random")
    with task.evaluating(), torch.no_grad():
        loaded = task.step(batch_of(5)).predictions
    assert is_sharded(task.model) == (ranks > 1)
    task.learning.gather_(rank)
    return {
        "gradients": seen.gradients,
        "losses": seen.losses,
        "held": seen.held,
        "total": sum(parameter.numel() for parameter in task.model.parameters()),
        "tensors": before,
        "given": given,
        "loaded": loaded,
        "checkpoint": saved,
        "gathered": dict(task.trainable_tensors()) if rank == 0 else {},
        "metrics": {name: float(trainer.callback_metrics[f"validation/{name}"]) for name in ("loss", "accuracy")},
        "answers": answers,
        "accelerations": (task.accelerations.on, task.accelerations.off),
    }


def work(rank: int, ranks: int, folder: Path, cases: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        of_ranks = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        os.environ |= {name: str(value) for name, value in of_ranks.items()} | {"TORCHELASTIC_RUN_ID": "test"}
        method = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=ranks)
    for name, settings in cases.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        try:
            found: Any = train(["trainer=fsdp", *settings], own, rank=rank, ranks=ranks)
        except InputError as error:
            found = str(error)
        if rank == 0:
            torch.save(found, f"{own}.pt" if ranks > 1 else f"{own}.alone.pt")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    to, told = Path(sys.argv[1]), json.loads(sys.argv[2])
    places = [(0, 1), (0, 2), (1, 2)]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(*place, to, told)) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
