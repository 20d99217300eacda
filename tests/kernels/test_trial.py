"""The faster of two ways is found by a trial, once for a processor, and every process has the same answer."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loralight.kernels import trial


class Clock:
    """A clock that moves when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "_answers", {})
    monkeypatch.setattr(trial, "perf_counter", CLOCK)
    return tmp_path / "loralight" / "faster.json"


def ways(first: float, second: float) -> Callable[[], tuple[Any, Any]]:
    """Two ways that take so many seconds."""
    return lambda: (lambda: CLOCK.advance(first), lambda: CLOCK.advance(second))


def never() -> tuple[Any, Any]:
    raise AssertionError("there was a trial")


def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_answers", {})


@pytest.mark.parametrize(("seconds", "faster"), [((0.8, 1.0), True), ((1.0, 0.8), False), ((0.99, 1.0), False)])
def test_a_way_is_faster_if_it_takes_clearly_less_time(seconds: tuple[float, float], faster: bool) -> None:
    assert trial.is_faster("a way", 3, ways=ways(*seconds)) is faster


def test_the_first_time_and_what_other_programs_add_do_not_count() -> None:
    slow = iter([9.0, 0.8, 5.0, *[0.9] * 20])
    assert trial.is_faster("a way", ways=lambda: (lambda: CLOCK.advance(next(slow)), lambda: CLOCK.advance(1.0)))


def test_what_watches_a_step_s_operations_does_not_see_a_trial() -> None:
    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(f"{func} was seen")

    def made() -> tuple[Any, Any]:
        numbers = torch.ones(3)
        return numbers.sum, numbers.sum

    with Watch():
        trial.is_faster("a way", ways=made)


def test_an_answer_is_kept_for_later_processes_on_this_processor(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.is_faster("a way", 3, ways=ways(0.0, 0.02))
    assert trial.is_faster("a way", 3, ways=never)
    in_a_new_process(monkeypatch)
    assert trial.is_faster("a way", 3, ways=never)
    assert not trial.is_faster("a way", 4, ways=ways(0.02, 0.0)), "another question"
    in_a_new_process(monkeypatch)
    monkeypatch.setattr(trial, "processor", lambda: "another")
    assert not trial.is_faster("a way", 3, ways=ways(0.02, 0.0))
    assert len(json.loads(file.read_text())) == 2


def test_what_limits_the_instructions_makes_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    trial.processor.cache_clear()
    plain = trial.processor()
    trial.processor.cache_clear()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert trial.processor() != plain
    trial.processor.cache_clear()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"x": {"a way 3 1": "no"}}', "\x00\xff"])
def test_a_damaged_file_is_written_anew(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    assert trial.is_faster("a way", 3, ways=ways(0.0, 0.02))
    assert json.loads(file.read_text())[trial.processor()]


def test_where_nothing_can_be_kept_there_is_a_trial_for_each_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.write_text("in the way")
    assert trial.is_faster("a way", 3, ways=ways(0.0, 0.02))
    assert trial.is_faster("a way", 3, ways=never)
    in_a_new_process(monkeypatch)
    assert not trial.is_faster("a way", 3, ways=ways(0.02, 0.0))
    assert stat.S_ISREG(file.parent.stat().st_mode)
