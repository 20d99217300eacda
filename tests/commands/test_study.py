"""`loralight study`: each method at its best rate, over seeds; what is missing is done by the same command."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Barrier, Lock
from typing import Any

import pytest

from loralight.commands.processes import Processes
from loralight.commands.study_cost import Cost
from loralight.commands.trial import Expected
from loralight.errors import InputError
from loralight.reports.groups import Group
from loralight.reports.runs import FinishedRun, find_runs, read_run
from loralight.reports.tables import best_of
from loralight.reports.verdict import verdict
from loralight.training.epochs import Epochs
from loralight.training.time_budget import Pace

from .stand_in import SUMMARY, leave_run, settings_of_run

InProcess = Callable[..., int]
Refused = Callable[..., str]

OPTIMA = {"lora": 1e-3 * 10, "bitfit": None, "full": 5e-5, "linear_probe": None}
"""The rate at which each is best here; of one, no rate matters."""
BESIDE: dict[str, dict[str, float]] = {
    "lora": {"test/ece": 0.05, "forgetting/loss": 3.25, "forgetting/loss_before": 3.0, "forgetting/loss_off": 3.0},
    "bitfit": {"forgetting/loss": 3.5},
    "full": {},
    "linear_probe": {},
}
"""What runs have measured beside their scores."""


UNTIMED = (
    "study.cost_of_runs = lambda *given, **_: "
    "type('Cost', (), {'each': lambda *_: [60.0] * len(given[2]), 'refused': {}})()"
)
"""Code for another process."""


def taking(seconds: float, *, epochs: int = 20) -> Callable[..., Cost]:
    """In place of `cost_of_runs`: runs of so many epochs, whose steps take all of the time."""
    of_step = Pace(step=seconds / epochs, validation=0.0, around=0.0)
    run = Expected(pace=of_step, epochs=Epochs(number=epochs, validated_every=math.ceil(epochs / 5)))
    return lambda processes, _, methods, **__: Cost(
        start=0.0, runs=[(run, number) for _, _, number in methods], jobs=processes.jobs
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are written down and not made: accuracy falls with the distance of the rate from the method's best."""
    ran: list[list[str]] = []

    def train(
        _: Processes, words: Sequence[str], log: Path, *, begin: Callable[[], object], **__: object
    ) -> str | None:
        begin()
        ran.append([word for word in words if word.startswith(("adapter", "optimizer", "seed"))])
        folder = log.with_suffix("")
        settings = settings_of_run("train", words, folder)
        name, rate = settings["names"]["adapter"], settings["optimizer"]["lr"]
        if name == "full" and rate > 1e-4:
            return "exit code 2: loralight: E-NAN: diverged"
        best = OPTIMA[name]
        distance = 0 if best is None else abs(math.log10(rate / best))
        accuracy = (
            {"lora": 0.9, "bitfit": 0.8, "full": 0.92, "linear_probe": 0.7}[name]
            - 0.1 * distance
            + 0.002 * settings["seed"]
        )
        scores = {"validation/accuracy": accuracy, "test/accuracy": accuracy - 0.01}
        is_solved = name == "linear_probe" and settings["trainer"]["max_epochs"] == "auto"
        leave_run(folder, words, settings, scores | BESIDE[name], steps=0 if is_solved else 5)
        return None

    monkeypatch.setattr(Processes, "train", train)
    monkeypatch.setattr("loralight.commands.study.cost_of_runs", taking(20.0))
    monkeypatch.setattr("loralight.commands.study.settings_of", settings_of_run)
    return ran


@pytest.fixture
def line(tiny_run: list[str]) -> list[str]:
    """A study in the folder ``all``."""
    return ["study", *tiny_run, "hydra.run.dir=all"]


METHODS = "methods=[lora, bitfit optimizer.lr=3e-4, adapter=full]"


def test_each_method_is_compared_at_its_best_rate_and_a_rerun_does_what_is_missing(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line.append(METHODS)
    assert in_process(*line, "seeds=3") == 2  # full fine-tuning diverges at a rate
    printed = capsys.readouterr()
    assert "methods: 3; seeds of each: 3; runs: 13 or more, 1 at a time, about 5 min, in " in printed.out
    assert "adapter=full optimizer.lr=0.000158 seed=0 failed: exit code 2" in printed.out
    assert "E-STUDY: 1 of the runs failed" in printed.err
    report = json.loads((tmp_path / "all" / "study.json").read_text())
    rates = {(run["adapter"], read_run(Path(run["run"])).settings["optimizer.lr"]) for run in report["runs"]}
    assert rates == {("lora", 0.01), ("bitfit", 3e-4), ("full", 5e-5)}
    assert len(report["runs"]) == 9
    assert not any(read_run(Path(run["run"])).settings["probe"] for run in report["runs"]), "it has a method of its own"
    assert sum("seed=0" in words and "adapter=lora" in words for words in trained) == 5  # 1, 0.3, 3, 10 and 30 times
    assert sum("adapter=bitfit" in words for words in trained) == 3
    assert report["failed"].keys() == {"adapter=full optimizer.lr=0.000158 seed=0"}
    assert {file.suffix for file in (tmp_path / "all").glob("study.*")} >= {".csv", ".html", ".json", ".md"}

    written = (tmp_path / "all" / "study.md").read_text()
    assert "|  | test/ece | forgetting/loss | adapter file | peak memory | training |" in written
    assert (
        "| 0.0500 ± 0.0000 | 3.2500 ± 0.0000 (before 3.0000) | 40 B | " in written and "beside quality" in printed.out
    )
    assert "|  | 3.5000 ± 0.0000 | 40 B | " in written and "| 2 s |" in written

    trained.clear()
    assert in_process(*line, "seeds=3") == 2
    assert trained == [["adapter=full", "optimizer.lr=0.000158", "seed=0"]]
    trained.clear()
    assert in_process(*line, "seeds=4") == 2
    assert sorted(words[-1] for words in trained) == ["seed=0", "seed=3", "seed=3", "seed=3"]


def test_a_rate_that_is_better_by_chance_alone_is_not_taken(
    trained: list[list[str]], in_process: InProcess, line: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[float, float, str]] = []

    def is_told_apart(run: FinishedRun, own: FinishedRun, metric: str) -> bool:
        asked.append((run.settings["optimizer.lr"], own.settings["optimizer.lr"], metric))
        return False

    monkeypatch.setattr("loralight.commands.study.is_told_apart", is_told_apart)
    assert in_process(*line, "methods=lora", "seeds=2") == 0  # its best rate is ten times its own
    report = json.loads((tmp_path / "all" / "study.json").read_text())
    assert {read_run(Path(run["run"])).settings["optimizer.lr"] for run in report["runs"]} == {1e-3}
    assert len(trained) == 4 and asked == [(0.00316, 0.001, "validation/accuracy")], "asked once, of the better one"


def test_rates_and_seeds_of_one_method_are_made_side_by_side(
    trained: list[list[str]], in_process: InProcess, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, one_at_a_time, train = Barrier(2, timeout=60), Lock(), Processes.train

    def meet(processes: Processes, words: Sequence[str], log: Path, **given: Any) -> str | None:
        if not ("seed=0" in words and "optimizer.lr=5e-05" in words):  # the first, which tells whether it can be run
            meeting.wait()
        with one_at_a_time:  # composing settings is for one thread
            return train(processes, words, log, **given)

    monkeypatch.setattr(Processes, "train", meet)
    assert in_process(*line, "methods=full", "seeds=3", "jobs=2") == 2  # it diverges at the higher rate
    assert len(trained) == 5 and not meeting.broken


def test_the_time_to_go_is_that_of_the_runs_that_have_ended_also_when_the_study_goes_on(
    trained: list[list[str]],
    in_process: InProcess,
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each run takes a minute, and was estimated at 20 seconds."""
    monkeypatch.setattr("loralight.commands.time_to_go.monotonic", lambda: 60.0 * len(trained))
    line.append("seeds=3")
    assert in_process(*line, "methods=bitfit optimizer.lr=3e-4") == 0
    printed = capsys.readouterr().out
    assert "runs: 3 or more, 1 at a time, about 1 min, in " in printed
    assert re.findall(r"(./3, .) min to go: ", printed) == ["1/3, 2", "2/3, 1", "3/3, 0"]
    trained.clear()
    assert in_process(*line, "methods=bitfit optimizer.lr=3e-4, lora optimizer.lr=1e-2") == 0
    printed = capsys.readouterr().out
    assert "runs: 6 or more, 3 of them done, 1 at a time, about 3 min, in " in printed
    assert re.findall(r"(./6, .) min to go: ", printed) == ["1/6, 3", "2/6, 3", "3/6, 3", "4/6, 2", "5/6, 1", "6/6, 0"]


def test_a_method_that_has_been_run_or_timed_is_not_timed_again(
    trained: list[list[str]],
    in_process: InProcess,
    line: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[str] = []

    def cost(
        processes: Processes, folder: Path, methods: Sequence[tuple[Sequence[str], Any, float]], **_: bool
    ) -> Cost:
        timed.extend(words[-1] for words, _, _ in methods)
        return taking(20.0)(processes, folder, methods)

    monkeypatch.setattr("loralight.commands.study.cost_of_runs", cost)
    assert in_process(*line, "methods=lora", "seeds=1") == 0
    assert in_process(*line, "methods=lora, full", "seeds=2") == 2  # full fine-tuning diverges at a rate
    assert timed == ["adapter=lora", "adapter=full"]
    assert in_process(*line, "methods=lora, full", "seeds=3", "jobs=2") == 2
    assert timed[2:] == ["adapter=lora", "adapter=full"], "runs beside each other take longer"


def test_a_method_that_nobody_named_and_the_model_cannot_have_is_left_out(
    trained: list[list[str]],
    in_process: InProcess,
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    timed: list[str] = []

    def cost(processes: Processes, folder: Path, methods: Sequence[tuple[Any, ...]], *, may_refuse: bool) -> Cost:
        names = [words[-1] for words, *_ in methods]
        timed.extend(names)
        error = InputError("E-BIAS", "no biases")
        refused = {place: error for place, name in enumerate(names) if name.rpartition("=")[2] not in (*OPTIMA, "2")}
        if refused and not may_refuse:
            raise error
        left = [method for place, method in enumerate(methods) if place not in refused]
        return replace(taking(20.0)(processes, folder, left), refused=refused)

    monkeypatch.setattr("loralight.commands.study.cost_of_runs", cost)
    monkeypatch.delitem(OPTIMA, "full")
    assert in_process(*line, "seeds=1") == 0
    printed = capsys.readouterr().out
    assert "adapter=dora is left out: E-BIAS: no biases" in printed
    assert "methods: 4; seeds of each: 1" in printed
    assert {words[0] for words in trained} == {"adapter=lora", "adapter=bitfit", "adapter=linear_probe"}
    trained.clear()
    timed.clear()
    assert in_process(*line, "seeds=1") == 0
    assert "adapter=dora is left out: E-BIAS: no biases" in capsys.readouterr().out
    assert not trained and not timed, "what was left out stays so"
    assert in_process(*line[:-1], "hydra.run.dir=other", "seeds=1", "methods=lora,dora") == 2
    assert "E-BIAS: no biases" in capsys.readouterr().err


def test_what_a_grown_grid_still_lacks_is_counted(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line += ["methods=lora, bitfit optimizer.lr=3e-4", "seeds=3"]

    def missing_without(*names: str) -> int:
        for name in names:
            (run,) = (tmp_path / "all").glob(f"*.lr.{name}-*/")
            shutil.rmtree(run)
        trained.clear()
        assert in_process(*line) == 0
        printed = capsys.readouterr().out
        told = re.search(r"runs: (\d+) or more(?:, (\d+) of them done)?, ", printed)
        assert told is not None and "10/10, 0 min to go" in printed
        counted = int(told[1]) - int(told[2] or 0)
        assert len(trained) >= counted
        return counted

    assert missing_without() == 5 + 3
    assert len(trained) == 7 + 3, "five rates"
    assert missing_without("0.01_seed.1", "0.01_seed.2") == 2 and len(trained) == 2
    assert missing_without("0.0316_seed.0", "0.01_seed.2", "3e-4_seed.0") == 3 and len(trained) == 3
    assert missing_without("0.000316_seed.0") == 1 and len(trained) == 1
    assert missing_without() == 0 and not trained


def test_a_probe_that_is_solved_for_has_no_rate_and_one_that_cannot_be_has_a_grid(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line.remove("trainer.max_epochs=1")
    assert in_process(*line, "methods=linear_probe, lora optimizer.lr=1e-2", "seeds=2") == 0
    assert "runs: 4 or more, 1 at a time" in capsys.readouterr().out
    assert trained[:2] == [["adapter=linear_probe", "seed=0"], ["adapter=linear_probe", "seed=1"]]
    report = (tmp_path / "all" / "study.md").read_text()
    assert "linear_probe" in report and "linear_probe optimizer" not in report
    for summary in (tmp_path / "all").glob("adapter.linear_probe*/summary.json"):
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "steps": 5}))
    trained.clear()
    assert in_process(*line, "methods=linear_probe", "seeds=2") == 0
    assert trained == [
        ["adapter=linear_probe", "optimizer.lr=0.000316", "seed=0"],
        ["adapter=linear_probe", "optimizer.lr=0.00316", "seed=0"],
    ]


def test_a_budget_cuts_all_runs_to_as_many_epochs_also_when_the_study_goes_on(
    trained: list[list[str]],
    in_process: InProcess,
    refused: Refused,
    line: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("loralight.commands.study.cost_of_runs", taking(12_000.0 / 4))
    line.remove("trainer.max_epochs=1")
    line += ["methods=['bitfit optimizer.lr=3e-4','linear_probe optimizer.lr=1']", "seeds=2"]
    assert in_process(*line, "budget=2h") == 0  # 9.6 of 20 epochs take four fifths of it
    assert "4 or more of 8 epochs each, 1 at a time, about 80 min, in " in capsys.readouterr().out

    def lengths() -> dict[str, set[tuple[object, object]]]:
        found: dict[str, set[tuple[object, object]]] = {}
        for run in map(read_run, find_runs([tmp_path / "all"])):
            settings = run.settings
            length = settings["trainer.max_epochs"], settings.get("trainer.check_val_every_n_epoch")
            found.setdefault(run.summary["adapter"], set()).add(length)
        return found

    assert lengths() == {"bitfit": {(8, 4)}, "linear_probe": {("auto", None)}}, "a probe is solved for"
    shutil.rmtree(next((tmp_path / "all").glob("*bitfit*seed.1*/")))
    monkeypatch.setattr("loralight.commands.study.cost_of_runs", taking(25.0))  # on a quicker machine
    assert in_process(*line, "budget=2h") == 0
    assert lengths()["bitfit"] == {(8, 4)}
    assert "has a study with other settings" in refused(*line, "budget=3h")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["budget=soon"], "E-BUDGET: budget=soon: give a time"),
        (["budget=1h", "trainer.max_epochs=3"], "E-BUDGET: trainer.max_epochs=3: budget= decides how long runs are"),
        (["budget=10min"], "E-BUDGET: budget: the runs take 12 min with one epoch each. Give more time, fewer"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_before_anything_runs(
    given: list[str],
    message: str,
    trained: list[list[str]],
    in_process: InProcess,
    refused: Refused,
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loralight.commands.study.cost_of_runs", taking(12_000.0 / 5.5))
    line.remove("trainer.max_epochs=1")
    assert message in refused(*line, "methods=lora", *given) and not trained
    assert in_process(*line, "methods=lora", "budget=9h") == 0, "the folder is still free"


def test_a_long_study_without_a_budget_names_one(
    trained: list[list[str]],
    in_process: InProcess,
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("loralight.commands.study.cost_of_runs", taking(1200.0))
    line += ["methods=bitfit optimizer.lr=3e-4", "seeds=3"]
    assert in_process(*line) == 0
    assert "about 60 min, in" in capsys.readouterr().out, "its length is given"
    line.remove("trainer.max_epochs=1")
    line.append("hydra.run.dir=auto")
    assert in_process(*line) == 0
    assert "about 60 min (by fewer epochs half of it: budget=30min), in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0"], "E-STUDY: seeds=0: give a number of at least 1"),
        (["jobs=two"], "E-STUDY: jobs=two: give a number of at least 1"),
        (["optimizer.lr=1e-3"], "E-STUDY: optimizer.lr=1e-3: a study chooses rates and seeds"),
        (["seed=3"], "E-STUDY: seed=3: a study chooses rates and seeds"),
        (["methods=[]"], "E-STUDY: methods= has one twice, or none"),
        (["methods=lora,adapter=lora"], "E-STUDY: methods= has one twice"),
        (["methods=lora,lorra"], "lorra"),
        (["methods=full,lora adapter.rank=0"], "E-RANK"),
        (["data.train=missing.csv"], "E-DATA"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    words: list[str], message: str, trained: list[list[str]], refused: Refused, line: list[str]
) -> None:
    assert message in refused(*line, *words)
    assert not trained


def test_a_study_of_other_settings_has_another_folder(
    trained: list[list[str]], in_process: InProcess, refused: Refused, line: list[str]
) -> None:
    line += ["methods=bitfit optimizer.lr=3e-4", "seeds=1"]
    assert in_process(*line) == 0
    assert "E-STUDY: " in (told := refused(*line, "data.batch_size=4")) and "has a study with other settings" in told


def test_a_study_that_is_stopped_ends_its_runs_and_goes_on(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line += ["methods=['bitfit optimizer.lr=1e-3']", "seeds=1", "trainer.max_epochs=1000"]
    code = (
        "from loralight.cli import main; import loralight.commands.study as study\n"
        f"{UNTIMED}; import sys; sys.argv = ['loralight', *{line!r}]; main()"
    )
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as study:
        while not list(tmp_path.rglob("manifest.json")):
            assert study.poll() is None
            time.sleep(0.1)
        study.send_signal(signal.SIGTERM)
        _, told = study.communicate(timeout=120)
    assert study.returncode == 143, told
    assert "give the same command with hydra.run.dir=" in told
    run = next(folder for folder in (tmp_path / "all").iterdir() if folder.is_dir())
    begun = max(run.glob("checkpoints/*"), key=os.path.getmtime)
    assert begun.is_dir() and not (run / "summary.json").exists() and not (run / "failed.json").exists()
    # the run is left to end where it stands: the study alone is tried on it
    ended = {"adapter": "bitfit", "metrics": {"validation/accuracy": 0.5}, "seed": 0}
    (run / "summary.json").write_text(json.dumps(SUMMARY | ended))
    assert in_process(*line) == 0
    assert "validation/accuracy 0.5" in capsys.readouterr().out and not trained


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_that_is_killed_twenty_times_has_the_same_scores_to_the_last_digit(
    tiny_run: list[str], tmp_path: Path
) -> None:
    methods = "methods=[lora,bitfit optimizer.lr=1e-3]"
    words = [*tiny_run, methods, "seeds=3", "probe=false", "trainer.max_epochs=10", "data.num_workers=0"]
    timing = f"import loralight.commands.study as study; {UNTIMED}"
    code = f"{timing}; import sys; from loralight.cli import main; main()"

    def begun(folder: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", code, "study", *words, f"hydra.run.dir={folder}"]
        with (tmp_path / f"{folder}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)

    def scores(folder: str) -> list[dict[str, Any]]:
        runs = json.loads((tmp_path / folder / "study.json").read_text())["runs"]
        measured = ("seed", "adapter", "settings", "trainable_parameters", "adapter_bytes", "steps")
        return [{name: run[name] for name in run if "/" in name or name in measured} for run in runs]

    def starts() -> int:
        log = tmp_path / "cut.log"
        return log.read_text(errors="replace").count("methods: ") if log.exists() else 0

    assert begun("whole").wait() == 0
    random, groups, killed = Random(0), list[int](), 0
    try:
        for killed in range(20):
            before, study = starts(), begun("cut")
            groups.append(study.pid)
            while starts() == before and study.poll() is None:
                time.sleep(0.1)
            with suppress(subprocess.TimeoutExpired):
                study.wait(random.uniform(0, 6))
                break
            study.kill()
            if killed % 4:  # its run too; else that goes on by itself, and the next study finds it at work
                os.killpg(study.pid, signal.SIGKILL)
            study.wait()
        groups.append((study := begun("cut")).pid)
        assert study.wait() == 0
    finally:
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    assert killed == 19, "none of twenty was done before its kill"
    assert scores("cut") == scores("whole")


def method(name: str, scores: Sequence[float]) -> Group:
    summaries = [{"metrics": {"test/accuracy": score}, "seed": seed} for seed, score in enumerate(scores)]
    return Group(adapter=name, label="", runs=[FinishedRun(folder=Path(), settings={}, summary=s) for s in summaries])


def share_of_claims(*, rows: int, seeds: int, gain: float, methods: int = 2, studies: int = 1000) -> float:
    """The share of made studies that claim a difference between methods, of which the last is better by ``gain``.

    The scores of a seed have a part in common, and are of so many test rows.
    """
    random, claims = Random(0), 0
    for _ in range(studies):
        shared = [random.gauss(0.9, 0.01) for _ in range(seeds)]
        gains = [*[0.0] * (methods - 1), gain]
        scores = [[round((s + g + random.gauss(0, 0.005)) * rows) / rows for s in shared] for g in gains]
        groups = [method(str(number), made) for number, made in enumerate(scores)]
        best = best_of(groups, "test/accuracy", mode="max")
        assert best is not None
        claims += any("is behind it by" in said for said in verdict(groups, best, "test/accuracy", mode="max")[1:])
    return claims / studies


@pytest.mark.parametrize("rows", [872, 10_000])
@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (2, 5), (4, 3), (9, 3), (9, 5)])
def test_a_study_of_a_method_against_itself_claims_a_difference_no_more_often_than_it_says(
    rows: int, methods: int, seeds: int
) -> None:
    level, studies = 0.05, 1000
    error = math.sqrt(level * (1 - level) / studies)
    assert share_of_claims(rows=rows, seeds=seeds, gain=0.0, methods=methods) < level + 2 * error
    found = share_of_claims(rows=rows, seeds=seeds, gain=0.03, methods=methods, studies=100)
    assert found > 0.8, "and a difference is claimed"
