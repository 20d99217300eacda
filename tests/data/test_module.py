"""Loaders deal every row once, in an order that a resumed run can go on with, to any number of processes."""

from collections.abc import Mapping
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loralight.data import TaskData
from loralight.errors import InputError


class Numbers(TaskData):
    """Rows 0..n-1 of each split; a row costs what its number says."""

    def __init__(self, *, num_rows: Mapping[str, int], **loading: Any) -> None:
        super().__init__(**loading)
        self.num_rows = num_rows

    def load(self) -> dict[str, list[int]]:
        return {name: list(range(count)) for name, count in self.num_rows.items()}

    def collate(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows)

    def lengths(self, split: str) -> list[int]:
        return [row % 7 for row in self.splits[split]]


def numbers(*, rank: int = 0, num_ranks: int = 1, accumulated: int = 1, train: int = 50, **arguments: Any) -> Numbers:
    """The data as one of several processes has it."""
    data = Numbers(num_rows={"train": train, "validation": 11, "test": 5}, **{"batch_size": 4, **arguments})
    data.setup()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    place = {"global_rank": rank, "world_size": num_ranks, "accumulate_grad_batches": accumulated}
    data.trainer = SimpleNamespace(**place, strategy=strategy)  # type: ignore[assignment]
    return data


def batches(data: Numbers, *, epoch: int = 0, split: str = "train") -> list[list[int]]:
    name = {"train": "train", "validation": "val", "test": "test"}[split]
    loader = getattr(data, f"{name}_dataloader")()
    loader.batch_sampler.set_epoch(epoch)
    found = [batch.tolist() for batch in loader]
    assert len(found) == len(loader)
    return found


class ByEpoch(Numbers):
    """A training row is 1000 x epoch + its number."""

    rows_differ_by_epoch = True

    def collate(self, rows: list[Any]) -> Tensor:
        return torch.tensor([1000 * row[0] + row[1] if isinstance(row, tuple) else row for row in rows])


class Anew(list[int]):
    """Rows that are what they are asked for by."""

    def __getitem__(self, index: Any) -> Any:
        return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_rows_that_differ_by_epoch_are_asked_for_by_epoch_and_number_in_training_alone(num_workers: int) -> None:
    plain = numbers()
    data = ByEpoch(num_rows={"train": 50, "validation": 11}, batch_size=4, num_workers=num_workers)
    data.splits = {"train": Anew(range(50)), "validation": Anew(range(11))}
    loader = data.train_dataloader()
    for epoch in (0, 1, 5):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        assert [batch.tolist() for batch in loader] == [
            [1000 * epoch + row for row in batch] for batch in batches(plain, epoch=epoch)
        ]
    assert [batch.tolist() for batch in data.val_dataloader()] == batches(plain, split="validation")


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_a_split_without_rows_is_an_error_before_training(empty: str) -> None:
    data = Numbers(num_rows={"train": 4, "validation": 4, "test": 4, empty: 0})
    with pytest.raises(InputError, match=f"^E-DATA-EMPTY: the {empty} split has no rows"):
        data.setup()


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_train_and_validation_must_be_there(missing: str) -> None:
    data = Numbers(num_rows={name: 4 for name in ("train", "validation", "test") if name != missing})
    with pytest.raises(InputError, match=f"^E-DATA-EMPTY: the {missing} split has no rows"):
        data.setup()


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 4, "eval_batch_size": 0}])
def test_a_batch_size_below_one_is_an_error(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"^E-BATCH: data\.batch_size is .* give at least 1"):
        Numbers(num_rows={}, **sizes)


def test_a_negative_number_of_workers_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^E-WORKERS: data\.num_workers is -1; give 0, or"):
        Numbers(num_rows={}, num_workers=-1)


@pytest.mark.parametrize(
    ("device", "given", "cores", "expected"),
    [
        ("cpu", None, 16, 0),
        ("cuda", None, 16, 7),  # two processes share the cores, and train on one each
        ("cuda", None, 64, 8),
        ("cuda", None, 1, 0),
        ("cuda", 3, 16, 3),
        ("cpu", 3, 16, 3),
        ("cuda", 0, 16, 0),
    ],
)
def test_a_gpu_is_read_ahead_for_and_a_processor_is_left_to_train(
    device: str, given: int | None, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    data = numbers(num_workers=given, num_ranks=2)
    data.trainer.strategy.root_device = torch.device(device)  # type: ignore[union-attr, misc]
    data.trainer.num_devices = 2  # type: ignore[union-attr, misc]
    assert data.train_dataloader().num_workers == expected


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_fewer_rows_than_processes_are_an_error(split: str) -> None:
    data = numbers(train=5, num_ranks=12)
    with pytest.raises(InputError, match=rf"^E-DATA-EMPTY: the {split} split has \d+ rows for 12 processes"):
        batches(data, split=split)


def test_data_is_read_once() -> None:
    data = numbers()
    first = data.splits
    data.setup("fit")
    assert data.splits is first


def test_evaluation_has_its_own_batch_size() -> None:
    data = numbers(batch_size=4, eval_batch_size=5)
    assert max(map(len, batches(data))) == 4
    assert max(map(len, batches(data, split="validation"))) == 5
    assert max(map(len, batches(numbers(batch_size=4), split="validation"))) == 4


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_processes_together_see_every_row_once(num_ranks: int, split: str, grouped: bool) -> None:
    shares = [
        batches(numbers(rank=rank, num_ranks=num_ranks, length_grouped=grouped), split=split)
        for rank in range(num_ranks)
    ]
    rows = sorted(row for share in shares for batch in share for row in batch)
    everything = numbers().splits[split]
    if split != "train":
        assert rows == everything
        return
    assert len({len(share) for share in shares}) == 1  # else one process would wait for the others forever
    assert set(rows) == set(everything)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_that_read_ahead_begin_with_the_epoch_that_is_resumed(num_workers: int) -> None:
    for epoch, done in [(2, 0), (2, 3), (2, None)]:  # at the end of one, within one, at the end of one not validated
        data = numbers(num_workers=num_workers)
        data.go_on_at(epoch, None if done is None else [(4, done)])
        loader = data.train_dataloader()
        reading = iter(loader)  # as Lightning does, before it sets the epoch
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        whole = batches(numbers(), epoch=epoch)
        assert [batch.tolist() for batch in reading] == whole[len(whole) if done is None else done :]


@pytest.mark.parametrize("num_ranks", [1, 3, 4, 7])
def test_each_training_row_counts_in_one_process_and_every_process_has_one_in_each_step(num_ranks: int) -> None:
    counted = []
    for rank in range(num_ranks):
        data = numbers(rank=rank, num_ranks=num_ranks, train=57)
        own = enumerate(batches(data, epoch=1))
        counted += [row for number, batch in own if not data.stands_in(1, number) for row in batch]
    assert sorted(counted) == list(range(57))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_order_is_a_function_of_seed_and_epoch(num_workers: int) -> None:
    first = batches(numbers(num_workers=num_workers), epoch=1)
    assert first == batches(numbers(), epoch=1)
    assert first != batches(numbers(), epoch=2)
    assert first != batches(numbers(seed=1), epoch=1)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped_and_later_ones_start_at_their_start(num_ranks: int) -> None:
    for rank in range(num_ranks):
        whole = numbers(rank=rank, num_ranks=num_ranks)
        resumed = numbers(rank=rank, num_ranks=num_ranks)
        assert resumed.go_on_at(1, [(4 * num_ranks, 2)]) == 2
        loader = resumed.train_dataloader()
        assert [batch.tolist() for batch in loader] == batches(whole, epoch=1)[2:]
        loader.batch_sampler.set_epoch(2)  # type: ignore[union-attr]
        assert [batch.tolist() for batch in loader] == batches(whole, epoch=2)


@pytest.mark.parametrize("other", [{"seed": 1}, {"train": 49}])
def test_a_checkpoint_of_other_data_or_another_order_is_refused(other: dict[str, int]) -> None:
    state = numbers().state_dict()
    numbers().load_state_dict(state)
    with pytest.raises(
        InputError, match=r"^E-RESUME-ORDER: the checkpoint was trained on 50 rows in the order of seed 0"
    ):
        numbers(**other).load_state_dict(state)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_checkpoint_of_as_many_other_rows_is_refused(split: str) -> None:
    other = numbers()
    other.splits[split][0] = 1000
    with pytest.raises(InputError, match=rf"^E-RESUME-ORDER: the rows of {split} are not those that the run was begun"):
        other.load_state_dict(numbers().state_dict())


def test_a_process_that_reads_data_is_not_sent_the_trainer() -> None:
    data = numbers()
    assert copy(data).trainer is None and data.trainer is not None
    assert copy(data).splits is data.splits


@pytest.mark.parametrize(("num_ranks", "accumulated"), [(1, 1), (2, 1), (3, 2), (1, 6)])
def test_the_rows_of_a_step_are_dealt_out_to_all_processes_and_batches(num_ranks: int, accumulated: int) -> None:
    ranks = [
        numbers(rank=rank, num_ranks=num_ranks, accumulated=accumulated, global_batch_size=12, train=36)
        for rank in range(num_ranks)
    ]
    shares = [batches(data) for data in ranks]
    assert {data.rows_per_step for data in ranks} == {12}
    assert {len(batch) for share in shares for batch in share} == {12 // num_ranks // accumulated}
    steps = [
        sorted(row for share in shares for batch in share[step : step + accumulated] for row in batch)
        for step in range(0, 3 * accumulated, accumulated)
    ]
    assert steps == [sorted(batch) for batch in batches(numbers(global_batch_size=12, batch_size=12, train=36))]


@pytest.mark.parametrize(
    ("num_ranks", "accumulated", "says"),
    [
        (3, 1, r"64 rows of a step .* to 3 processes .*; give a multiple of 3, such as 63 or 66, or other devices"),
        (1, 3, r"64 rows of a step .* to 1 process with trainer\.accumulate_grad_batches=3; give a multiple of 3"),
        (16, 8, r"64 rows of a step .* give a multiple of 128, such as 128, or"),
    ],
)
def test_rows_of_a_step_that_cannot_be_dealt_out_evenly_are_refused(
    num_ranks: int, accumulated: int, says: str
) -> None:
    data = numbers(num_ranks=num_ranks, accumulated=accumulated, global_batch_size=64)
    with pytest.raises(InputError, match=rf"^E-BATCH: data\.global_batch_size={says}"):
        data.train_dataloader()
