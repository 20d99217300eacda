"""The report before training: trainable parameters, accelerations, memory, padding."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

import lightning
from rich.table import Table
from torch import Tensor, nn

from loralight.acceleration.unpadding import is_unpadded
from loralight.adapters.base import trainable
from loralight.adapters.targets import passed_over
from loralight.data import TaskData
from loralight.logs import human
from loralight.models.quantisation import as_before
from loralight.training.heads import head_rate
from loralight.training.task import AdapterTask

Sizes = dict[str, int]
"""Bytes by kind of tensor."""

_BATCHES = 20  # whose padding is measured


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def targets_table(task: AdapterTask) -> Table:
    """Each target pattern, the layers that it chose, and the number of their trainable parameters."""
    table = Table(title="trainable parameters", title_justify="left")
    for column, justify in (("pattern", "left"), ("layers", "right"), ("for example", "left"), ("parameters", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    seen: set[int] = set()
    for pattern, names in task.adapted.items():
        table.add_row(
            pattern, str(len(names)), names[0], f"{_learning((task.model.get_submodule(n) for n in names), seen):,}"
        )
    head = {id(part) for part in task.head(task.model)}
    in_head = {id(module) for part in task.head(task.model) for module in part.modules()}
    candidates = {name: module for name, module in task.model.named_modules() if id(module) not in in_head}
    if task.unread:
        table.add_row("(left out: never read)", str(len(task.unread)), task.unread[0], "0")
    for kind, names in passed_over(candidates, task.adapted).items():
        table.add_row(f"(passed over: {kind})", str(len(names)), names[0], "0")
    for name, part in task.model.named_modules():
        if id(part) not in head:
            continue
        table.add_row("(head)", "1", name, f"{_learning([part], seen):,}")
    total = sum(parameter.numel() for parameter in as_before(task.model))
    learns = sum(parameter.numel() for parameter in trainable(task.model).values())
    table.add_section()
    table.add_row("all", "", f"{learns / total:.2%} of {total:,}", f"{learns:,}")
    return table


def accelerations_table(task: AdapterTask) -> Table:
    """The accelerations that are on, and for each of the others why it is off."""
    table = Table(title="accelerations", title_justify="left", show_header=False)
    table.add_row("on", ", ".join(task.accelerations.on) or "none")
    for name, reason in task.accelerations.off.items():
        table.add_row(f"off: {name}", reason)
    return table


def before_activations(task: AdapterTask) -> tuple[Sizes, Sizes]:
    """Bytes of weights, gradients and optimizer state, compared with training every parameter.

    The optimizer is assumed to keep two values for each parameter, as Adam does. Activations are not included, since
    they depend on the batch; `loralight.commands.estimate` counts them.
    """
    learns, every = num_bytes(trainable(task.model).values()), num_bytes(as_before(task.model))
    held = num_bytes(task.model.parameters())
    this, everything = (
        {"weights": weights, "gradients": count, "optimizer state": 2 * count}
        for weights, count in ((held, learns), (every, every))
    )
    return this, everything


def memory_table(this: Sizes, everything: Sizes, *, title: str) -> Table:
    """Memory of this run next to that of training every parameter, with sums."""
    table = Table(title=title, title_justify="left")
    for column in ("", "this run", "training everything"):
        table.add_column(column, justify="left" if not column else "right")
    for name, size in this.items():
        table.add_row(name, human(size), human(everything[name]))
    table.add_section()
    table.add_row("sum", human(sum(this.values())), human(sum(everything.values())))
    return table


def rates_line(task: AdapterTask) -> list[str]:
    """Lines on parameters with another learning rate than the optimizer's; none if all have the optimizer's."""
    counts = Counter(factor for factor in task.adapter.lr_factors(task.model).values() if factor != 1)
    every = len(trainable(task.model))
    lines = [f"learning rate: {n} of {every} tensors at {factor:g} x optimizer.lr" for factor, n in counts.items()]
    if (rate := head_rate(task.head_settings.lr, task.learning.head)) is not None:
        lines.append(f"learning rate of the head: {rate:g}")
    return lines


def batch_lines(trainer: lightning.Trainer, data: TaskData) -> list[str]:
    """A line on the rows of an optimizer step and of each process's batch; one more if there are several processes."""
    num_ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts = [f"{num_ranks} processes"] * (num_ranks > 1) + [f"{accumulated} accumulated batches"] * (accumulated > 1)
    split = f": {' x '.join([*parts, f'{data.batch_size} rows'])}" if parts else ""
    few = f" (few rows: data.batch_size={data.batch_size}, for more steps)" if data.has_small_batches else ""
    lines = [f"optimizer step: {num_ranks * accumulated * data.batch_size} rows{split}{few}"]
    if num_ranks > 1:
        lines.append(
            "processes: they train on the rows of each step as one would; their dropout masks are others, of the same "
            "distribution"
        )
    return lines


def padding_line(task: AdapterTask, data: TaskData) -> list[str]:
    """A line on the padding in the first training batches and its cost; none if no mask marks padding."""
    rows, sampler = data.splits["train"], data.train_dataloader().batch_sampler
    assert sampler is not None
    places = tokens = 0
    for numbers in islice(sampler, 0 if data.rows_differ_by_epoch else _BATCHES):
        batch = data.collate([rows[number] for number in numbers])
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if not isinstance(mask, Tensor):
            return []
        places, tokens = places + mask.numel(), tokens + int(mask.sum())
    if not tokens:
        return []
    computed = (
        "the encoder computes on the tokens alone" if is_unpadded(task.model) else "padding is computed like them"
    )
    return [f"padding: training batches have {places / tokens:.2f} places for each token; {computed}"]


def _learning(modules: Iterable[nn.Module], seen: set[int]) -> int:
    """Number of trainable values in ``modules`` that were not counted before."""
    count = 0
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                count += parameter.numel()
    return count
