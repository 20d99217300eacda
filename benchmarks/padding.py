"""A step on real sentences in batches drawn at random: beside PEFT, which computes on the padding.

    python benchmarks/padding.py [--data FOLDER] [--quick]

MiniLM in float32 on one thread, LoRA of rank 8 on every linear layer, dropout of 0.1 in the model and in LoRA, batches
of 32 in random order, AdamW included. Both sides get the same padded batches and begin at the same weights; that their
losses and gradients are equal without dropout, and that both train with it, is checked first. FOLDER holds train.* and
validation.* with columns text and label; without one it is the demo data of the task.
"""

import argparse
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from side_by_side import Ratio, Row, in_turns, peak_memory, ratio, show
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from loralight.adapters import LoraLayer
from loralight.adapters.base import trainable
from loralight.config.build import build_data, build_task
from loralight.config.composition import compose, plain
from loralight.data import TaskData
from loralight.resources import resolve
from loralight.training.task import AdapterTask

RATE = 1e-3
Batches = list[dict[str, Tensor]]


def configured(data: str | None, *overrides: str) -> dict[str, Any]:
    """The settings of both sides, with rows in random order."""
    where = [] if data is None else ["data=text_classification", f"data.path='{data}'"]
    lora = ["adapter=lora", "adapter.rank=8", "adapter.dropout=0.1", f"adapter.lr={RATE}"]
    of_class = ["task.pooling=model", "task.head_lr=null"]  # what PEFT's side has
    line = ["task=text_classification", *where, *lora, *of_class, "trainer=cpu", "~callbacks", "~logger"]
    settings: dict[str, Any] = plain(compose("train", [*line, "data.length_grouped=false", *overrides]))
    return settings


def make_task(config: dict[str, Any], data: TaskData) -> AdapterTask:
    """The side of loralight, with updates that are not 0."""
    task = build_task(config, data.model_arguments())
    torch.manual_seed(1)
    for module in task.model.modules():
        if isinstance(module, LoraLayer):
            nn.init.normal_(module.lora_B, std=0.02)
    return task


def make_peer(task: AdapterTask) -> nn.Module:
    """PEFT's side, from the same checkpoint with the same weights."""
    source = task.model
    assert isinstance(source, PreTrainedModel)
    names = [name for name, module in source.named_modules() if isinstance(module, LoraLayer)]
    base = AutoModelForSequenceClassification.from_pretrained(
        resolve(str(task.checkpoint)), num_labels=source.config.num_labels
    )
    head = [name for name, module in source.named_modules() if any(module is part for part in task.head(source))]
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules=names,
        modules_to_save=head,
    )
    model: nn.Module = get_peft_model(base, lora)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in trainable(source).items():
            theirs[in_peft(name)].copy_(tensor)
    return model


def in_peft(name: str) -> str:
    """What PEFT's model calls a parameter that learns."""
    owner, _, leaf = name.rpartition(".")
    is_lora = leaf in ("lora_A", "lora_B")
    return f"base_model.model.{owner}.{f'{leaf}.default.weight' if is_lora else f'modules_to_save.default.{leaf}'}"


def ours(task: AdapterTask, batch: dict[str, Tensor]) -> Tensor:
    """The task's loss, as in training."""
    with task.accelerations.step(task.model):
        return task.step(batch).loss


def theirs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of PEFT's model."""
    loss: Tensor = model(**batch).loss
    return loss


def steps(
    model: nn.Module, loss_of: Callable[[Any, Any], Tensor], batches: Batches, *, has_dropout: bool = True
) -> Callable[[], None]:
    """A call that makes one optimizer step on each batch, in training mode with dropout on."""
    model.train()
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    assert bool(drops) is has_dropout and all(module.training for module in drops)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def call() -> None:
        for batch in batches:
            optimizer.zero_grad()
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return call


def check(task: AdapterTask, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Raise unless both sides have the same loss and gradients without dropout."""
    task.eval()
    model.eval()
    mine, other = ours(task, batch), theirs(model, batch)
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    for loss in (mine, other):
        loss.backward()  # type: ignore[no-untyped-call]
    peers = dict(model.named_parameters())
    for name, parameter in trainable(task.model).items():
        found, expected = parameter.grad, peers[in_peft(name)].grad
        assert found is not None and expected is not None
        assert (found - expected).norm() <= 1e-5 * max(float(expected.norm()), 1e-2), name


def sides(data: str | None, count: int) -> tuple[AdapterTask, nn.Module, Batches]:
    """Both sides, and the first batches of the epoch."""
    config = configured(data)
    read = build_data(config)
    task = make_task(config, read)
    return task, make_peer(task), list(islice(read.train_dataloader(), count))


def make_ours(data: str | None, count: int) -> Callable[[], None]:
    """For `peak_memory`."""
    task, _, batches = sides(data, count)
    return steps(task, ours, batches)


def make_theirs(data: str | None, count: int) -> Callable[[], None]:
    """For `peak_memory`."""
    _, model, batches = sides(data, count)
    return steps(model, theirs, batches)


def rows(quick: bool, data: str | None = None) -> list[Row]:
    """Time and peak memory of a step."""
    torch.set_num_threads(1)
    task, model, batches = sides(data, 4 if quick else 12)
    check(task, model, batches[0])
    seconds = in_turns(
        {"ours": steps(task, ours, batches), "peer": steps(model, theirs, batches)}, rounds=3 if quick else 9
    )
    peaks = [peak_memory(make, data, len(batches)) for make in (make_ours, make_theirs)]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    places = sum(batch["attention_mask"].numel() for batch in batches)
    work = f"MiniLM, batches of 32 sentences in random order, {places / tokens:.1f} places a token"
    memory = peaks[0] / peaks[1]
    return [
        Row(work, "PEFT", "time of a step", ratio(seconds, "ours", "peer"), 0.46),
        Row(work, "PEFT", "peak memory of a step", Ratio(memory, memory, memory), 0.52),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    show(rows(arguments.quick, arguments.data), "padding")


if __name__ == "__main__":
    main()
