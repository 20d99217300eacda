"""The time that a study will take is that of its missing runs, timed while the other places are busy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loralight.commands import study_cost
from loralight.commands.processes import Processes
from loralight.commands.study_cost import cost_of_study
from loralight.commands.trial import Expected, Trial, expected
from loralight.config.composition import settings_of
from loralight.training.time_budget import Pace

InProcess = Callable[..., int]


def test_each_method_is_timed_once_beside_busy_places_and_counted_as_often_as_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy: list[Sequence[str]] = []

    @contextmanager
    def beside(_: Processes, words: Sequence[str]) -> Iterator[None]:
        busy.append(words)
        yield
        busy.append(["over"])

    def seconds(settings: dict[str, Any]) -> Expected:
        assert busy == [["adapter=lora"]]
        return Expected(pace=Pace(step=0.0, validation=0.0, around=float(settings["seconds"])), epochs=None)

    monkeypatch.setattr(Processes, "busy", beside)
    monkeypatch.setattr(Processes, "seconds_to_start", staticmethod(lambda: 4.0))
    monkeypatch.setattr(study_cost, "_expected", seconds)
    runs = [({"seconds": 6.0}, 5), ({"seconds": 16.0}, 3), ({"seconds": 1e9}, 0)]
    assert cost_of_study(Processes(2), ["adapter=lora"], runs).seconds() == (5 * 10 + 3 * 20) / 2
    busy.clear()
    assert cost_of_study(Processes(2), ["adapter=lora"], [({}, 0)]).seconds() == 0 and not busy


def test_a_probe_that_is_solved_for_takes_no_steps_and_a_probe_of_forgetting_takes_time(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "general.txt").write_text("a fine day\n")
    monkeypatch.setattr("loralight.commands.trial._seconds", lambda *_: 1.0)
    words = [*tiny_run, "trainer.max_epochs=auto", "probe=false"]

    def seconds(*more: str) -> float:
        return expected(Trial(settings_of("train", [*words, *more], tmp_path)), built=0.0).seconds()

    solved, trained = seconds("adapter=linear_probe"), seconds("adapter=lora")
    assert solved == 2, "a batch of validation and one of test"
    assert trained > solved + 99  # steps
    measured = seconds("adapter=lora", "forgetting=features", f"forgetting.texts={tmp_path / 'general.txt'}")
    assert trained < measured < trained + 60
