"""The size of a run's batches is settled before anything is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralight.config.batch_size import check_batch_size, with_rows_per_process
from loralight.errors import InputError


def config(size: int | None = 24, *, devices: int = 1, accumulated: int = 1, **others: Any) -> dict[str, Any]:
    trainer = {"accelerator": "cpu", "devices": devices, "num_nodes": 1, "accumulate_grad_batches": accumulated}
    data = {"batch_size": 32, "global_batch_size": size}
    return {"data": data, "trainer": trainer, "auto_batch": False, "resume": None, **others}


@pytest.mark.parametrize(
    ("size", "devices", "accumulated", "share"), [(None, 3, 2, 32), (24, 1, 1, 24), (24, 4, 1, 6), (24, 3, 4, 2)]
)
def test_the_rows_of_a_step_are_divided_among_processes_and_batches(
    size: int | None, devices: int, accumulated: int, share: int
) -> None:
    given = config(size, devices=devices, accumulated=accumulated)
    check_batch_size(given, ["data.global_batch_size=24"])
    assert with_rows_per_process(given)["data"] == {"batch_size": share, "global_batch_size": size}


def test_under_a_launcher_its_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert with_rows_per_process(config(devices=4))["data"]["batch_size"] == 3
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    tasks = {"NTASKS": "12", "NTASKS_PER_NODE": "12", "PROCID": "3", "STEP_ID": "0", "JOB_NAME": "job"}
    for name, value in tasks.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert with_rows_per_process(config(devices=4))["data"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("given", "words", "says"),
    [
        (config(), ["data.batch_size=8"], r"data\.batch_size and data\.global_batch_size are given at once"),
        (config(), ["+data.batch_size=8"], r"data\.batch_size and data\.global_batch_size are given at once"),
        (config(auto_batch=True), [], r"auto_batch=true and data\.global_batch_size are given at once"),
        (config(devices=5), [], r"data\.global_batch_size=24 .* to 5 processes .*such as 20 or 25"),
        (config(accumulated=5), [], r"data\.global_batch_size=24 .* to 1 process with .*=5; give a multiple of 5"),
    ],
)
def test_what_cannot_be_or_is_said_twice_is_refused(given: dict[str, Any], words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=f"^E-BATCH: {says}"):
        check_batch_size(given, words)


def test_a_resumed_run_may_repeat_the_batch_size_that_its_folder_holds() -> None:
    check_batch_size(config(resume="run"), ["data.batch_size=8", "data.global_batch_size=24"])


@pytest.mark.parametrize("verb", ["train", "estimate"])
def test_processes_that_do_not_divide_a_step_are_refused_before_there_is_a_folder(
    verb: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    line = ["trainer=ddp_cpu", "trainer.devices=3", "data.global_batch_size=16", "data.path=./nowhere"]
    (printed,) = refused(verb, *line).splitlines()
    assert "E-BATCH: data.global_batch_size=16 rows of a step cannot be dealt out evenly to 3 processes" in printed
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
