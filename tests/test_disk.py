"""A disk that fills up, a folder that is taken away, a place that takes nothing: one message, and nothing lost."""

import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loralight.disk import telling_of_disk
from loralight.errors import InputError
from loralight.training.checkpoint import newest, verify
from loralight.training.task import AdapterTask

InProcess = Callable[..., int]


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Has something happen before a training batch of the next run, counted from 1."""

    def arrange(number: int, happens: Callable[[], Any]) -> None:
        step, calls = AdapterTask.training_step, []

        def watched(self: AdapterTask, *arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == number:
                happens()
            return step(self, *arguments)

        monkeypatch.setattr(AdapterTask, "training_step", watched)

    return arrange


@contextmanager
def filling_disk() -> Iterator[Callable[[], None]]:
    """A function after which the kernel refuses every further byte of a file, as on a full disk, in this context.

    What pytest itself prints may go to a file too, so the context ends within the test.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_one_message(printed: str, code: str) -> str:
    """Nothing is told but log lines and one message, which is returned."""
    assert "Traceback" not in printed and "Logging error" not in printed, printed
    (message,) = re.findall(rf"^loralight: {code}: .*$", printed, re.MULTILINE)
    return str(message)


@pytest.mark.parametrize("logger", [[], ["~logger"]], ids=["metrics", "checkpoint"])
def test_a_disk_that_fills_up_ends_a_run_with_one_message_and_leaves_its_checkpoints(
    logger: list[str],
    in_process: InProcess,
    tiny_run: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    at_batch: Callable[..., None],
) -> None:
    with filling_disk() as fill:
        at_batch(8, fill)
        assert in_process("train", *tiny_run, "trainer.max_epochs=3", *logger, "hydra.run.dir=run") == 2
    message = assert_one_message(capsys.readouterr().err, "E-DISK")
    assert "File too large" in message and str(tmp_path / "run") in message
    kept = newest(tmp_path / "run")
    verify(kept)
    assert "step=5" in kept.name and not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("without", [[], ["~logger"], ["~logger", "~callbacks"]], ids=["metrics", "saves", "adapter"])
def test_a_run_whose_folder_is_taken_away_ends_with_one_message(
    without: list[str], refused: Callable[..., str], tiny_run: list[str], tmp_path: Path, at_batch: Callable[..., None]
) -> None:
    at_batch(3, lambda: shutil.rmtree(tmp_path / "run"))
    message = assert_one_message(refused("train", *tiny_run, *without, "hydra.run.dir=run"), "E-DISK")
    assert str(tmp_path / "run") in message
    assert not (tmp_path / "run").exists()


def test_a_place_that_takes_no_folder_is_told_in_one_message(refused: Callable[..., str], tiny_run: list[str]) -> None:
    assert "/sys/loralight" in assert_one_message(refused("train", *tiny_run, "hydra.run.dir=/sys/loralight"), "E-DISK")


def test_a_file_of_the_users_that_is_missing_is_not_taken_for_the_runs_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), telling_of_disk(tmp_path / "run"):
        (tmp_path / "data.csv").read_text()
    message = r"^E-DISK: .*run/metrics\.csv cannot be written: No such file"
    with pytest.raises(InputError, match=message), telling_of_disk(tmp_path / "run"):
        (tmp_path / "run" / "metrics.csv").open("a")
