"""The data module that plugins build on: reproducible shuffling, exact resuming, and every row evaluated once."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
from torch import nn
from torch.utils.data import DataLoader, Dataset

from loralight.annotations import mismatch
from loralight.data.batching import BatchSampler, UsualBatch, rows_per_process
from loralight.data.dealing import Dealt
from loralight.data.row_digest import digest, sample
from loralight.errors import InputError
from loralight.stopping import outlive

if TYPE_CHECKING:
    from loralight.data.splits import Readers


class TaskData(lightning.LightningDataModule, ABC):
    """Splits ready for a model, and the loaders over them.

    A plugin encodes the rows of `read_splits` in `load`, joins rows to a batch in `collate`, and passes on in
    `model_arguments` the task's arguments that only the data knows. Batches are a pure function of (seed, epoch, rank):
    a resumed run gets the same next batch as an uninterrupted run, with any number of workers. The rows of an optimizer
    step depend on their number alone, not on the processes and accumulated batches that they are dealt out to.

    Args:
        path, name, train, validation, test, validation_fraction, limit_rows, limit_eval_rows: where the rows are, and
            which of them are used, see `load_splits`.
        drop_missing: columns, without a value in which a row is left out, see `load_splits`.
        header, delimiter, encoding: the format of their files, see `load_splits`.
        batch_size: rows of a batch in each process. If None, ``usual_batch`` has it by the number of training rows.
        global_batch_size: rows of an optimizer step, over all processes and accumulated batches, which takes the place
            of ``batch_size`` in training: the same rows make a step on any number of processes. It must be a multiple
            of processes times accumulated batches.
        eval_batch_size: rows of a batch in each process in validation and test; ``batch_size`` if None.
        length_grouped: whether a batch has rows of similar length, which saves computing on padding.
        num_workers: processes that read ahead; 0 reads in the training process. If None, 0 on a CPU, whose cores
            train, and on GPUs one less than the cores for each GPU, up to 8.
        seed: of the order of rows, and of the choice of train rows.
        split_seed: of the choice of validation and test rows, see `load_splits`.
    """

    readers: ClassVar["Readers"] = {}
    """Readers of the formats that this data may come in besides tables."""

    usual_batch: ClassVar[UsualBatch] = UsualBatch(least=32, most=32, steps=1)
    """The rows of a batch where ``batch_size`` is None. Few rows are few steps, of which a new head needs hundreds."""

    rows_differ_by_epoch: ClassVar[bool] = False
    """Whether the train split is indexed by (epoch, row). Random choices in a row, such as an image's augmentation, are
    then a function of both, and a resumed run repeats them."""

    def __init__(
        self,
        *,
        path: str | None = None,
        name: str | None = None,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.1,
        limit_rows: int | None = None,
        limit_eval_rows: int | None = None,
        drop_missing: Sequence[str | int] | str | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        length_grouped: bool = True,
        num_workers: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        # imported here: the library of data sets takes seconds to import, and a task alone does not need it
        from loralight.data.splits import load_splits

        super().__init__()
        if any(size is not None and size < 1 for size in (batch_size, global_batch_size, eval_batch_size)):
            raise InputError(
                "E-BATCH",
                f"data.batch_size is {batch_size}, global_batch_size {global_batch_size}, eval_batch_size "
                f"{eval_batch_size}; give at least 1",
            )
        self.global_batch_size, self._has_usual_size = global_batch_size, batch_size is None
        self.batch_size = self.usual_batch.most if batch_size is None else batch_size
        self.eval_batch_size = eval_batch_size or self.batch_size
        if num_workers is not None and num_workers < 0:
            raise InputError("E-WORKERS", f"data.num_workers is {num_workers}; give 0, or a number of processes")
        self.length_grouped, self.num_workers, self.seed = length_grouped, num_workers, seed
        self.read_splits = partial(
            load_splits,
            path=path,
            name=name,
            train=train,
            validation=validation,
            test=test,
            validation_fraction=validation_fraction,
            limit_rows=limit_rows,
            limit_eval_rows=limit_eval_rows,
            drop_missing=drop_missing,
            header=header,
            delimiter=delimiter,
            encoding=encoding,
            seed=seed,
            split_seed=split_seed,
            readers=self.readers,
        )
        self.limit_rows, self.header = limit_rows, header
        self.delimiter, self.encoding = delimiter, encoding
        self.splits: Mapping[str, Any] = {}
        self._digest_of: dict[str, str] = {}
        self._resume_at: tuple[int, Dealt | None] = (0, ())
        self._train_sampler: BatchSampler | None = None
        self._measuring: dict[str, BatchSampler] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state for a process that reads data, without the trainer, whose processes it could not join."""
        return {**vars(self), "trainer": None}

    @abstractmethod
    def load(self) -> Mapping[str, Any]:
        """Read, check and encode the data: sized, indexable splits by name, ``train`` and ``validation`` among them."""

    @abstractmethod
    def collate(self, rows: list[Any]) -> Any:
        """Join rows to the batch that the task's ``step`` takes."""

    def lengths(self, split: str) -> Sequence[int]:
        """The cost of each row of a split, such as its number of tokens; all equal by default."""
        return [1] * len(self.splits[split])

    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the task that only the data knows, as plain values, such as label names."""
        return {}

    def examples(self, count: int) -> list[tuple[Any, str]]:
        """A few inputs that training does not see, as the task's ``predict`` takes them, with the correct answers."""
        return []

    def shown(self, split: str, row: int) -> str | list[str] | None:
        """A row's input as people read it in a report: a text, or a list of words; None by default."""
        return None

    def thumbnail(self, split: str, row: int) -> bytes | None:
        """A row's input as a small JPEG of at most 6 kB, which a report shows; None by default."""
        return None

    def asked(self, split: str, row: int) -> Any:
        """What a row asks, and what is right, whatever the model: texts, bytes and plain values, or None by default.

        By it, runs whose models or settings encode rows differently are known to be measured on the same rows. It is
        None where scores hang on the encoding.
        """
        return None

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of a trivial baseline on a split, by metric name."""
        return {}

    def monitored(self) -> str:
        """The name of the metric that chooses the best checkpoint if ``monitor.metric`` is ``auto``."""
        return "loss"

    def report(self) -> list[str]:
        """Lines about the data for the pre-flight report: rows, labels, cut texts."""
        return [f"{name}: {len(rows)} rows" for name, rows in self.splits.items()]

    def suit_(self, model: nn.Module) -> None:
        """Change rows that ``model`` could not take as they were read; does nothing by default.

        It is called when the model is built, before the first batch and the report.
        """
        return None

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.splits = self.load()
        for name in dict.fromkeys(("train", "validation", *self.splits)):
            if not len(self.splits.get(name, ())):
                raise InputError("E-DATA-EMPTY", f"the {name} split has no rows")
        self.choose_batch_size_()

    def choose_batch_size_(self) -> None:
        """Take the usual rows of a batch for the training rows, if nobody has chosen them."""
        if self._has_usual_size:
            self.batch_size = self.usual_batch.size(len(self.splits["train"]))

    @property
    def has_small_batches(self) -> bool:
        """Whether a batch has fewer rows than usual, as there are few."""
        return self._has_usual_size and self.batch_size < self.usual_batch.most

    def train_dataloader(self) -> DataLoader[Any]:
        self._train_sampler = self._sampler_of_training()
        return self._loader("train", self._train_sampler)

    def go_on_at(self, epoch: int, dealt: Dealt | None) -> int:
        """Have training resume within an epoch.

        Args:
            epoch: its number, from 0.
            dealt: how the epoch was begun, see `dealt`; None if all of it is done.

        Returns:
            The number of batches of the epoch that count as done. If steps have another size now, the rows that are
            left are dealt anew, and become the last batches of the epoch.
        """
        self._resume_at = (epoch, None if dealt is None else [(size, steps) for size, steps in dealt])
        self._train_sampler = self._sampler_of_training()
        return self._train_sampler.num_done(epoch)

    def dealt(self, epoch: int, batches: int) -> Dealt:
        """The steps of an epoch up to a batch, the last of a step: rows of a step, and number of steps, by turns."""
        return () if self._train_sampler is None else self._train_sampler.dealt(epoch, batches)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all processes and accumulated batches of the trainer."""
        _, num_ranks, accumulated = self._place()
        return self._rows_per_process() * num_ranks * accumulated

    def stands_in(self, epoch: int, batch_idx: int) -> bool:
        """Whether this process's row of a training batch is a copy of another process's row, where it counts.

        This happens in at most one batch of an epoch, which has fewer rows than there are processes.
        """
        return self._train_sampler is not None and self._train_sampler.stands_in(epoch, batch_idx)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader_of_measuring("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader_of_measuring("test")

    def rows_of(self, split: str, batch_idx: int) -> list[int]:
        """The numbers of this process's rows in a batch of validation or test; none of a loader that is not ours."""
        sampler = self._measuring.get(split)
        return [] if sampler is None else sampler.share(0, batch_idx, sampler.rank)

    def _loader_of_measuring(self, split: str) -> DataLoader[Any]:
        self._measuring[split] = self._sampler(split, self.eval_batch_size)
        return self._loader(split, self._measuring[split])

    def _place(self) -> tuple[int, int, int]:
        """This process's rank, the number of processes, and the batches of an optimizer step."""
        if self.trainer is None:
            return 0, 1, 1
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches

    def _rows_per_process(self) -> int:
        if self.global_batch_size is None or self.trainer is None:
            return self.batch_size
        _, num_ranks, accumulated = self._place()
        return rows_per_process(self.global_batch_size, num_ranks=num_ranks, accumulated=accumulated)

    def _sampler_of_training(self) -> BatchSampler:
        _, _, accumulated = self._place()
        sampler = self._sampler("train", self._rows_per_process(), shuffle=True, accumulated=accumulated)
        sampler.resume_at = self._resume_at
        sampler.epoch = self._resume_at[0]  # workers read ahead before Lightning sets the epoch
        return sampler

    def _sampler(self, split: str, batch_size: int, *, shuffle: bool = False, accumulated: int = 1) -> BatchSampler:
        rank, num_ranks, _ = self._place()
        if len(self.splits[split]) < num_ranks:
            raise InputError(
                "E-DATA-EMPTY",
                f"the {split} split has {len(self.splits[split])} rows for {num_ranks} processes; take fewer of these",
            )
        return BatchSampler(
            self.lengths(split),
            batch_size=batch_size,
            shuffle=shuffle,
            grouped=self.length_grouped,
            seed=self.seed,
            rank=rank,
            num_ranks=num_ranks,
            accumulated=accumulated,
            with_epoch=shuffle and self.rows_differ_by_epoch,
        )

    def _loader(self, split: str, sampler: BatchSampler) -> DataLoader[Any]:
        rows: Dataset[Any] = self.splits[split]
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        num_workers = self.num_workers or 0
        if self.num_workers is None and self.trainer is not None and on_gpu:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            num_workers = min(8, max(0, cores // self.trainer.num_devices - 1))
        return DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=num_workers,
            worker_init_fn=outlive,
            persistent_workers=num_workers > 0,
            pin_memory=on_gpu,
        )

    def state_dict(self) -> dict[str, Any]:
        """The identity of the data, for a resumed run; the trainer's `Position` keeps the place in it."""
        return {"seed": self.seed, "rows": len(self.splits["train"]), "digests": self._digests()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kinds: dict[str, Any] = {"seed": int, "rows": int, "digests": Mapping[str, str]}
        for name, kind in kinds.items():
            if expected := mismatch(state_dict.get(name), kind):
                raise InputError("E-CKPT-STATE", f"the checkpoint's data has no {name} that is {expected}")
        rows = len(self.splits["train"])
        if (state_dict["seed"], state_dict["rows"]) != (self.seed, rows):
            raise InputError(
                "E-RESUME-ORDER",
                f"the checkpoint was trained on {state_dict['rows']} rows in the order of seed {state_dict['seed']}, "
                f"these are {rows} rows and seed {self.seed}; resume with the same data and seed",
            )
        digests = self._digests()
        if other := [name for name in digests if state_dict["digests"].get(name) != digests[name]]:
            raise InputError(
                "E-RESUME-ORDER",
                f"the rows of {' and '.join(other)} are not those that the run was begun with; resume it with the same "
                "data, or start a new run",
            )

    def identity(self) -> dict[str, Any]:
        """The numbers of rows and the digests of all splits, which tell whether two runs had the same data.

        ``digests`` are of the rows as encoded, ``asked`` of what they ask, where the plugin tells it.
        """
        rows = {name: len(split) for name, split in self.splits.items()}
        asked = {name: [self.asked(name, row) for row in sample(count)] for name, count in rows.items()}
        return {
            "rows": rows,
            "digests": {name: self._digest(name) for name in rows},
            "asked": {name: digest(found, [rows[name]]) for name, found in asked.items() if None not in found},
        }

    def _digests(self) -> dict[str, str]:
        """Digests of the rows for training and of the rows by which the best checkpoint is chosen."""
        return {name: self._digest(name) for name in ("train", "validation")}

    def _digest(self, name: str) -> str:
        if name not in self._digest_of:
            split, with_epoch = self.splits[name], self.rows_differ_by_epoch and name == "train"
            rows = (split[(0, row) if with_epoch else row] for row in sample(len(split)))
            self._digest_of[name] = digest(rows, self.lengths(name))
        return self._digest_of[name]
