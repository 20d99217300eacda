"""``loralight estimate``: the memory of a training run, counted on shapes alone, and the largest batch that fits."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._pytree import tree_map_only

from loralight import logs
from loralight.adapters import FullFineTuning
from loralight.adapters.base import trainable
from loralight.artifacts.output import refuse_existing
from loralight.commands.measuring import measuring
from loralight.config.batch_size import with_rows_per_process
from loralight.config.build import build_data, build_task, build_trainer, check_config
from loralight.config.composition import plain
from loralight.config.sharding import shards
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.logs import human
from loralight.models.shapes import leaving_out_weights, shapes_only
from loralight.training.footprint import Footprint, footprint
from loralight.training.launch import num_nodes, num_processes, num_wanted
from loralight.training.memory import at_hand, in_use, parse_memory
from loralight.training.preflight import Sizes, memory_table, num_bytes
from loralight.training.sharding import check_can_be_sharded, gathered_together

_SPARE = 0.1  # share of the memory that is left free: the error of an estimate
_HOLES = 0.8  # memory that glibc's allocator wastes, as a share of the pieces; 0.5 to 1 on the four tasks' demos


def main(config: DictConfig) -> dict[str, Any]:
    """The job that Hydra runs. Returns the estimate that it writes to ``output``."""
    logs.configure()
    settings = plain(config)
    check_config(settings)
    limit = None if settings["memory"] is None else parse_memory(settings["memory"])
    output = settings["output"]
    refuse_existing(output)
    run = Estimate(settings, elsewhere=limit is not None)
    size = run.data.batch_size
    this = run.sizes(size)
    every = Estimate(
        {**settings, "adapter": _everything(settings)}, data=run.data, program=run.program, elsewhere=limit is not None
    )
    everything = every.sizes(size)
    title = f"memory of a step on the {size} longest rows"
    limit = run.limit(limit)
    largest = run.largest(limit)
    logs.show(memory_table(this, everything, title=title), f"\nparameters: {run.num_learning:,} learn of {run.num:,}")
    if run.stands_in:
        logs.show("no GPU is here: activations are those that the processor would keep")
    if run.num_ranks > 1:
        logs.show(run.traffic())
    logs.show(f"largest batch in {human(limit)}: data.batch_size={largest}{run.remark(largest)}")
    report = {
        "parameters": {"trainable": run.num_learning, "total": run.num},
        "bytes": this,
        "everything": everything,
        "batch_size": size,
        "memory": limit,
        "largest_batch_size": largest,
    }
    if output:
        Path(output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


class Estimate:
    """The memory of a run's steps, by the size of its batches.

    The model is built without weights, and steps are computed on shapes; see `loralight.models.shapes`. Batches consist
    of the longest rows of the training split, so that no batch of the run takes more.

    Args:
        config: as composed for ``loralight train``, in plain values.
        data: the run's data, if it has been read already.
        program: bytes of a process on a CPU without its tensors; 0 to measure this process after a step on shapes.
        elsewhere: whether another machine is meant, so that this one may have fewer devices. If it has no GPU at all,
            a GPU's memory is counted by what the processor would keep.

    Raises:
        InputError: the machine has fewer devices, or their number is not known (``E-DEVICES``).
    """

    def __init__(
        self, config: dict[str, Any], *, data: TaskData | None = None, program: int = 0, elsewhere: bool = False
    ) -> None:
        trainer = config["trainer"]
        self.num_processes = _num_elsewhere(trainer) if elsewhere else num_processes(trainer)
        self.shards, self.num_ranks = shards(trainer), self.num_processes * num_nodes(trainer)
        self._num_parts = self.num_ranks if self.shards else 1
        of_gpu = trainer.get("accelerator") in ("gpu", "cuda")
        self.stands_in = elsewhere and of_gpu and not torch.cuda.is_available()
        if elsewhere:
            config = {**config, "trainer": {**trainer, "accelerator": "cpu", "devices": self.num_ranks, "num_nodes": 1}}
        self.config = measuring(with_rows_per_process(config))
        if not self.stands_in:
            self.config["trainer"]["accelerator"] = trainer.get("accelerator", "auto")
        with leaving_out_weights():
            self.data = build_data(self.config) if data is None else data
        made = build_trainer(self.config, Path(), [])
        self.device, self._precision = made.strategy.root_device, made.precision_plugin
        self._of_cpu = self.device.type == "cpu" and not self.stands_in
        self._most = max(len(self.data.splits["train"]) // self.num_processes, 1)
        self._found: dict[int, Footprint] = {}
        self.program = program
        with shapes_only() as self._shapes, self._on_device():
            self.task = build_task(self.config, self.data.model_arguments())
            if self.shards:
                check_can_be_sharded(self.task)
                self.task.accelerations.leave_whole_weights_(self.task.model)
            self._precision.convert_module(self.task)
            self.task.start_accelerations_()
            self._optimizer = self.task.make_optimizer()
        self.num = sum(parameter.numel() for parameter in self.task.model.parameters())
        self.num_learning = sum(parameter.numel() for parameter in trainable(self.task.model).values())

    def footprint(self, batch_size: int) -> Footprint:
        """The bytes of a step on a batch of the longest rows."""
        if batch_size not in self._found:
            batch = self._precision.convert_input(longest_batch(self.data, batch_size))
            batch = move_data_to_device(batch, self.device)
            with self._shapes, self._on_device():
                fake = tree_map_only(Tensor, self._shapes.without_numbers, batch)
                self._found[batch_size] = footprint(
                    self.task, self._optimizer, fake, precision=self._precision.forward_context
                )
            self.program = self.program or in_use()
        return self._found[batch_size]

    def sizes(self, batch_size: int) -> Sizes:
        """Bytes of memory by purpose; their sum is the memory of one process."""
        found = self.footprint(batch_size)
        sizes = {
            "weights": found.weights // self._num_parts,
            "gradients": found.gradients // self._num_parts,
            "optimizer state": found.optimizer // self._num_parts,
            "activations for the backward pass": found.activations,
            "working memory at the peak": found.working,
        }
        if self.shards:
            sizes |= self._gathered()
        elif self.num_processes > 1:
            sizes["gradients in exchange"] = found.gradients  # DDP's buckets
        if self._of_cpu:
            sizes |= {"holes of the allocator": int(_HOLES * found.pieces), "the program itself": self.program}
        return sizes

    def _gathered(self) -> Sizes:
        """Bytes of what is whole at once: what is outside of the blocks, a block, and the next one on its way."""
        model = self.task.model
        rest, *blocks = gathered_together(self.task.gathered_apart(model), model)
        learning = [[parameter for parameter in group if parameter.requires_grad] for group in (rest, *blocks)]
        return {
            "weights gathered at a time": num_bytes(rest) + 2 * max(map(num_bytes, blocks), default=0),
            "gradients in exchange": 2 * max(map(num_bytes, learning)),
        }

    def traffic(self) -> str:
        """A line on the bytes that a process receives: of gradients, and of weights that are gathered twice a batch."""
        model, others = self.task.model, 1 - 1 / self.num_ranks
        weights, gradients = num_bytes(model.parameters()), num_bytes(trainable(model).values())
        if not self.shards:  # an all-reduce over a ring is a reduce-scatter and an all-gather
            return f"in each step a process receives {human(2 * others * gradients)} of gradients"
        return (
            f"in each batch a process receives {human(2 * others * weights)} of weights, and "
            f"{human(others * gradients)} of gradients"
        )

    def limit(self, given: int | None = None) -> int:
        """The bytes that one process may take: its share of ``given``, else of the free memory."""
        whole = at_hand(self.device) if given is None else given
        return whole // self.num_processes if self._of_cpu else whole

    def largest(self, limit: int) -> int:
        """Rows of the largest batch that takes up to nine tenths of ``limit`` bytes; at most all training rows.

        Extrapolated by a line through two batches. Rows are sorted from the longest, so a larger batch takes less than
        the line says.

        Raises:
            InputError: not even one row fits (``E-MEMORY``).
        """
        usable = int((1 - _SPARE) * limit)
        size = max(self.data.batch_size, 2)
        chosen = self._on_line(size, 2 * size, usable)
        if chosen < size:  # below both batches the line may give too little memory
            chosen = self._on_line(1, size, usable)
            while chosen > 1 and sum(self.sizes(chosen).values()) > usable:
                chosen -= max(chosen // 8, 1)
        if chosen < 1:
            least = human(sum(self.sizes(1).values()) / (1 - _SPARE))
            raise InputError(
                "E-MEMORY",
                f"not even a batch of one row fits {human(limit)}: it needs {least}. Give shorter rows (such as "
                "a smaller model.max_length), a smaller model, or trainer.precision=bf16-true",
            )
        return min(chosen, self._most)

    def _on_line(self, one: int, other: int, usable: int) -> int:
        """The batch size at which a line through the memory of two batches reaches ``usable`` bytes."""
        low, high = (sum(self.sizes(size).values()) for size in (one, other))
        if high <= low:
            return other if high <= usable else 0
        return one + (usable - low) * (other - one) // (high - low)

    def remark(self, chosen: int) -> str:
        return " (all rows of train)" if chosen == self._most else ""

    def _on_device(self) -> Any:
        return nullcontext() if self.device.type == "cpu" else torch.device(self.device)


def _num_elsewhere(trainer: Mapping[str, Any]) -> int:
    if wanted := num_wanted(trainer):
        return wanted
    raise InputError("E-DEVICES", "trainer.devices=auto: no GPU is here to be counted; give their number")


def longest_batch(data: TaskData, batch_size: int) -> Any:
    """A batch of the longest training rows; if there are too few, rows are repeated."""
    lengths, rows = data.lengths("train"), data.splits["train"]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    chosen = [order[place % len(order)] for place in range(batch_size)]
    return data.collate([rows[(0, row) if data.rows_differ_by_epoch else row] for row in chosen])


def _everything(config: Mapping[str, Any]) -> dict[str, Any]:
    target = f"{FullFineTuning.__module__}.{FullFineTuning.__qualname__}"
    return {"_target_": target, "lr": config["adapter"]["lr"]}
