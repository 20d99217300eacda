"""The time that a study will take is that of its missing runs, timed while the other places are busy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loralight.commands import study_cost
from loralight.commands.processes import Processes
from loralight.commands.study_cost import Missing, cost_of_runs
from loralight.commands.trial import Expected, Trial, expected
from loralight.config.composition import settings_of
from loralight.errors import InputError
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.epochs import Epochs
from loralight.training.time_budget import Pace

InProcess = Callable[..., int]


def test_each_method_is_timed_beside_busy_places_and_one_short_run_tells_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[object] = []

    @contextmanager
    def beside(_: Processes, words: Sequence[str]) -> Iterator[Callable[[Sequence[str], Path], float]]:
        told.append(words)

        def seconds_of_short_run(words: Sequence[str], folder: Path) -> float:
            told.append((words, folder.parent))
            return 12.0

        yield seconds_of_short_run
        told.append("over")

    def timed(settings: dict[str, Any], folder: Path, *, built: float) -> Expected:
        assert told == [["adapter=lora"]] and folder == tmp_path
        pace = Pace(step=0.0, validation=0.0, around=settings["seconds"])
        steps = Epochs(number=1, validated_every=1) if settings["bytes"] > 1 else None
        return Expected(pace=pace, epochs=steps, short=8.0, checkpoint=settings["bytes"])

    monkeypatch.setattr(Processes, "busy", beside)
    monkeypatch.setattr(study_cost, "_build", lambda settings: settings)
    monkeypatch.setattr(study_cost, "expected", timed)
    methods = [
        (["adapter=lora"], {"seconds": 6.0, "bytes": 20}, Missing(number=5, in_turn=3)),
        (["adapter=bitfit"], {"seconds": 16.0, "bytes": 10}, Missing(number=3, in_turn=2)),
        (["adapter=linear_probe"], {"seconds": 1.0, "bytes": 1}, Missing(number=2, in_turn=2)),
    ]
    cost = cost_of_runs(Processes(2), tmp_path, methods)
    assert cost.each() == [4 + 6, 4 + 16, 4 + 1]
    assert told[1:] == [(["adapter=bitfit"], tmp_path), "over"], "of those with steps it writes least"
    assert cost.seconds() == (50 + 60 + 10) / 2, "two places"
    assert replace(cost, jobs=9).seconds() == 40, "of bitfit's runs two are in turn"
    told.clear()
    assert cost_of_runs(Processes(2), tmp_path, []).seconds() == 0 and not told


def test_a_method_that_the_model_cannot_have_is_left_out_or_refused(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def alone(*_: object) -> Iterator[Callable[..., float]]:
        yield lambda *_: 1.0

    monkeypatch.setattr(Processes, "busy", alone)
    words = [[*tiny_run, name] for name in ("adapter=lora", "model.targets=[nothing]", "adapter=bitfit")]
    methods = [(one, settings_of("train", one, tmp_path), Missing(number=1, in_turn=1)) for one in words]
    cost = cost_of_runs(Processes(1), tmp_path, methods, may_refuse=True)
    assert len(cost.each()) == 2 and [str(error).split(":")[0] for error in cost.refused.values()] == ["E-TARGET-NONE"]
    with pytest.raises(InputError, match="E-TARGET-NONE"):
        cost_of_runs(Processes(1), tmp_path, methods)
    with pytest.raises(InputError, match="E-TARGET-NONE"):  # nothing could be compared with the others
        cost_of_runs(Processes(1), tmp_path, methods[1:], may_refuse=True)

    def full(*_: object) -> None:
        raise InputError("E-DISK", "full")

    monkeypatch.setattr(Trial, "write", full)
    with pytest.raises(InputError, match="E-DISK"):  # which has nothing to do with the method
        cost_of_runs(Processes(1), tmp_path, methods, may_refuse=True)


def test_a_probe_that_is_solved_for_takes_no_steps_and_a_probe_of_forgetting_takes_time(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "general.txt").write_text("a fine day\n")
    monkeypatch.setattr("loralight.commands.trial._seconds", lambda *_: 1.0)
    monkeypatch.setattr(Trial, "write", lambda *_: (0.0, 0))
    words = [*tiny_run, "trainer.max_epochs=auto", "probe=false"]

    def seconds(*more: str) -> float:
        return expected(Trial(settings_of("train", [*words, *more], tmp_path)), tmp_path, built=0.0).seconds()

    solved, trained = seconds("adapter=linear_probe"), seconds("adapter=lora")
    assert solved == 5 + 3 + 2, "batches of training, of validation three times, of test twice"
    assert trained == 20 * 5 + 5 + 1 + 1, "steps, validations, and the last of validation and test"
    measured = seconds("adapter=lora", "forgetting=features", f"forgetting.texts={tmp_path / 'general.txt'}")
    assert trained < measured < trained + 60


def test_the_writing_of_checkpoints_is_counted_at_the_ends_of_epochs_and_validations(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralight.commands.trial._seconds", lambda *_: 0.0)
    monkeypatch.setattr(Trial, "write", lambda *_: (1.0, 50))

    def found(*more: str) -> Expected:
        words = [*tiny_run, "trainer.max_epochs=4", "probe=false", *more]
        return expected(Trial(settings_of("train", words, tmp_path)), tmp_path, built=0.0)

    whole = found()
    inside = whole.of_epoch * 4 / 200  # one in 200 steps
    assert whole.seconds() == pytest.approx(4 + 4 + inside + 1), "and the best is read and kept"
    assert whole.short == pytest.approx(3 + 1 / 200) and whole.checkpoint == 50
    assert found("~callbacks").seconds() == 1


def test_a_part_of_a_large_checkpoint_is_written_and_nothing_is_left(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(settings_of("train", [*tiny_run, "adapter=full"], tmp_path))
    trial.step(next(iter(trial.data.train_dataloader())))
    written: list[int] = []
    monkeypatch.setattr(FolderCheckpointIO, "save_checkpoint", lambda _, part, __: written.append(len(part)))
    _, size = trial.write(tmp_path)
    weights = sum(parameter.numel() for parameter in trial.task.model.parameters())
    assert 3 * 4 * weights <= size < 3 * 4 * weights + 4000, "weights and two moments, and the numbers of steps"
    monkeypatch.setattr("loralight.commands.trial._SAMPLE", 1)
    trial.write(tmp_path)
    assert written[0] > 1 and written[1] == 1
    assert not list(tmp_path.iterdir())
