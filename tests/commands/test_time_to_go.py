"""The time that a study's missing runs will take, by estimates and by made-up runs that have ended."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from loralight.commands import time_to_go
from loralight.commands.study_cost import Missing
from loralight.commands.time_to_go import TimeToGo


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the only item."""
    now = [1000.0]
    monkeypatch.setattr(time_to_go, "monotonic", lambda: now[0])
    return now


Ended = Callable[..., None]


def missing(**numbers: float) -> dict[str, Missing]:
    """So many runs of each method, none of which waits for another."""
    return {method: Missing(number=number, in_turn=1) for method, number in numbers.items()}


@pytest.fixture
def ended(clock: list[float]) -> Ended:
    """Makes up runs of a method, one after another."""

    def make(study: TimeToGo, method: str, seconds: Sequence[float], *, is_whole: bool = True) -> None:
        for one in seconds:
            study.begin(Path(method), method)
            clock[0] += one
            study.end(Path(method), is_whole=is_whole)

    return make


def test_methods_of_which_no_run_has_ended_are_corrected_by_the_others(ended: Ended, tmp_path: Path) -> None:
    study = TimeToGo(tmp_path / "cost.json", 1)
    study.expect({"lora": 40.0, "full": 60.0, "bitfit": 20.0})
    assert study.seconds(missing(lora=5, full=5.4, bitfit=0)) == pytest.approx(5 * 40 + 5.4 * 60)
    ended(study, "lora", [50.0, 46.0])
    assert study.of_run("lora") == 48 and study.of_run("full") == pytest.approx(60 * 48 / 40)
    ended(study, "bitfit", [32.0])
    assert study.of_run("full") == pytest.approx(60 * (50 + 46 + 32) / (40 + 40 + 20))
    ended(study, "full", [1.0], is_whole=False)
    assert study.of_run("full") == pytest.approx(60 * 1.28), "a run that was resumed says nothing of a whole one"


def test_runs_are_made_beside_each_other_as_far_as_they_do_not_wait(clock: list[float], tmp_path: Path) -> None:
    study = TimeToGo(tmp_path / "cost.json", 2)
    study.expect({"lora": 10.0, "full": 20.0})
    assert study.seconds(missing(lora=3, full=3)) == 45
    assert study.seconds({"lora": Missing(number=7, in_turn=3), "full": Missing(number=1, in_turn=1)}) == 45
    assert study.seconds({"lora": Missing(number=5, in_turn=5)}) == 50, "one place is idle"
    study.begin(Path("a"), "lora")
    study.begin(Path("b"), "full")
    clock[0] += 6
    assert study.seconds(missing(lora=3, full=3)) == 45 - 6
    clock[0] += 60
    assert study.seconds(missing(lora=3, full=3)) == 45 - (10 + 20) / 2, "runs that are late end any moment"
    assert study.seconds({"full": Missing(number=1, in_turn=1)}) == 0


def test_a_study_that_goes_on_knows_what_its_runs_took(ended: Ended, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    study = TimeToGo(file, 2)
    study.expect({"lora": 40.0, "full": 60.0})
    ended(study, "lora", [60.0])
    again = TimeToGo(file, 2)
    assert again.knows("lora") and again.knows("full") and not again.knows("bitfit")
    assert (again.of_run("lora"), again.of_run("full")) == (60, 90)
    assert not TimeToGo(file, 1).knows("lora"), "alone it takes less"
    for damaged in ("", "[]", '{"jobs": 2}', '{"jobs": 2, "estimated": {"lora": "a"}, "taken": {}}'):
        file.write_text(damaged)
        assert not TimeToGo(file, 2).knows("lora")
    assert [one.name for one in tmp_path.iterdir()] == ["cost.json"]
