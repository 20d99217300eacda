"""`loralight tune`: Optuna's search for the best settings, which goes on after a kill and counts no trial twice."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from loralight.commands.processes import Processes
from loralight.commands.tuning.plan import Plan
from loralight.commands.tuning.proposals import FILE, Proposals
from loralight.commands.tuning.pruning import Pruning
from loralight.commands.tuning.space import Space
from loralight.errors import InputError

from .stand_in import leave_run, settings_of_run

InProcess = Callable[..., int]
Refused = Callable[..., str]
RATE, RANK = 3e-3, 4
"""Where the stand-in for training is best."""


def accuracy(settings: dict[str, Any]) -> float:
    rate, rank = settings["optimizer"]["lr"], settings["adapter"]["rank"]
    return float(0.9 - 0.1 * math.log10(rate / RATE) ** 2 - 0.02 * abs(math.log2(rank / RANK)))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are written down and not made; they fail at rates above 0.05, and learn over three validations."""
    ran: list[list[str]] = []

    def train(
        _: Processes, words: Sequence[str], log: Path, *, is_enough: Callable[[], bool], **__: object
    ) -> str | None:
        folder = log.with_suffix("")
        settings = settings_of_run("train", words, folder)
        ran.append([f"{settings['adapter']['rank']}", f"{settings['optimizer']['lr']}"])
        if settings["optimizer"]["lr"] > 0.05:
            return "exit code 2: loralight: E-NAN: diverged"
        score = accuracy(settings)
        folder.mkdir(parents=True)
        if write_metrics(folder / "metrics.csv", [score - 0.2, score - 0.1, score], is_enough):
            leave_run(folder, words, settings, {"validation/accuracy": score, "test/accuracy": 1 - score})
        return None

    monkeypatch.setattr(Processes, "train", train)
    monkeypatch.setattr("loralight.commands.tuning.plan.settings_of", settings_of_run)
    monkeypatch.setattr(Plan, "seconds_of_trial", lambda *_: 60.0)
    return ran


@pytest.fixture
def line(tiny_run: list[str]) -> list[str]:
    """A search in the folder ``all``."""
    return ["tune", *tiny_run, "hydra.run.dir=all"]


def write_metrics(file: Path, scores: Sequence[float], is_enough: Callable[[], bool]) -> bool:
    """Write a validation after another; false once that is enough."""
    for step, score in enumerate(scores):
        with file.open("a", newline="") as opened:
            csv.writer(opened).writerows([["step", "validation/accuracy"]] * (step == 0) + [[10 * step, score]])
        if is_enough():
            return False
    return True


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / FILE}").trials


WIDE = ["adapter.rank=1,4,16", "optimizer.lr=tag(log, interval(1e-5, 1e-1))"]


def test_a_search_finds_the_optimum_and_gives_it_as_a_run_and_as_overrides(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line, *WIDE, "trials=20") == 0
    printed = capsys.readouterr().out
    assert "search: adapter.rank 1,4,16, optimizer.lr 1e-05 to 0.1 (log)\n0/20 trials, 1 at a time, " in printed
    assert "about 60 s each, 20 min to go, in " in printed
    told = yaml.safe_load((tmp_path / "all" / "best" / ".hydra" / "config.yaml").read_text())
    assert told["adapter"]["rank"] == RANK and 0.5 < told["optimizer"]["lr"] / RATE < 2
    report = json.loads((tmp_path / "all" / "tune.json").read_text())
    scores = [run["validation/accuracy"] for run in report["runs"]]
    assert scores == sorted(scores, reverse=True) and scores[0] == accuracy(told)
    assert printed.rstrip().endswith(f"adapter.rank=4 optimizer.lr={told['optimizer']['lr']}")
    assert {file.suffix for file in (tmp_path / "all").glob("tune.*")} == {".csv", ".html", ".json", ".md"}
    begun = [one for one in trials(tmp_path / "all") if "begun" in one.user_attrs]
    ended = ["FAIL" if "error" in one.user_attrs else one.state.name for one in begun]
    assert ended.count("PRUNED") > 3 and f"trials given up: {ended.count('PRUNED')}" in printed
    assert ended.count("PRUNED") + ended.count("COMPLETE") == 20  # those that failed are not counted
    assert len(scores) == ended.count("COMPLETE") and len(report["failed"]) == ended.count("FAIL") > 0

    trained.clear()
    assert in_process(*line, *WIDE, "trials=20") == 0
    assert not trained
    assert in_process(*line, *WIDE, "trials=21") == 0
    assert sum(float(rate) <= 0.05 for _, rate in trained) == 1


def test_of_choices_each_is_tried_once(
    trained: list[list[str]], in_process: InProcess, line: list[str], tmp_path: Path
) -> None:
    assert in_process(*line, "adapter.rank=1,4", "optimizer.lr=1e-3,3e-3", "trials=100") == 0
    assert sorted(trained) == [["1", "0.001"], ["1", "0.003"], ["4", "0.001"], ["4", "0.003"]]
    assert (tmp_path / "all" / "best").resolve().name == "adapter.rank-4_optimizer.lr-0.003"


def test_a_search_in_which_all_fails_ends(trained: list[list[str]], refused: Refused, line: list[str]) -> None:
    message = "E-TUNE: all trials have failed: exit code 2: loralight: E-NAN: diverged"
    assert message in refused(*line, "optimizer.lr=interval(0.1, 0.2)")
    assert len(trained) == 5


def test_no_trial_begins_that_would_end_after_the_budget(
    trained: list[list[str]], in_process: InProcess, line: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Proposals, "spent", property(lambda self: 10 * self.num))
    monkeypatch.setattr(Proposals, "usual", property(lambda self: 10.0 if self.num else None))
    assert in_process(*line, *WIDE, "budget=45s") == 0
    assert len([one for one in trials(tmp_path / "all") if one.state.name in ("COMPLETE", "PRUNED")]) == 4


def test_settings_beyond_a_limit_are_not_tried(
    trained: list[list[str]],
    in_process: InProcess,
    refused: Refused,
    line: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    line += ["adapter.rank=1,4,16", "optimizer.lr=1e-3"]
    assert in_process(*line, "most_parameters=5000") == 0
    assert sorted(trained) == [["1", "0.001"], ["4", "0.001"]]
    assert "not tried: adapter.rank=16: " in (printed := capsys.readouterr().out) and "2/3 trials" in printed
    message = "E-TUNE: all trials have failed: each exceeds most_parameters= or most_memory="
    assert message in refused(*line, "hydra.run.dir=none", "most_memory=1MB")


def test_earlier_runs_are_known_and_not_made_again(
    trained: list[list[str]],
    in_process: InProcess,
    refused: Refused,
    tiny_run: list[str],
    line: list[str],
    tmp_path: Path,
) -> None:
    assert in_process("train", *tiny_run, "adapter.rank=4", "hydra.run.dir=first", "seed=3") == 0
    line.append("adapter.rank=1,4,16")
    message = "E-TUNE: earlier=: none is a trial of this search; of first, data.batch_size is 8"
    assert message in refused(*line, "data.batch_size=4", "earlier=first")
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    summary["metrics"]["validation/accuracy"] = 0.99
    (tmp_path / "first" / "summary.json").write_text(json.dumps(summary))
    assert in_process(*line, "earlier=first") == 0
    assert sorted(rank for rank, _ in trained) == ["1", "16"]
    assert (tmp_path / "all" / "best").resolve() == tmp_path / "first"
    (tmp_path / "first" / "summary.json").write_text(json.dumps({**summary, "data": {"digests": {"validation": "0"}}}))
    assert "of first, the validation rows are others" in refused(*line, "earlier=[first]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapter.rnk=2,4"], "Did you mean 'rank' or 'lr_rank'?"),
        (["adapter.rank=2,two"], "adapter.rank: 'two' is not an integer"),
        (["adapter=lora,lorra"], "lorra"),
        (["adapter.rank=4", "optimizer.lr=1e-3"], "E-TUNE: no setting has several values"),
        (["seed=1,2"], "E-TUNE: seed=1,2: this is no setting to search"),
        (["adapter=glob(*)"], "E-TUNE: adapter=glob(*): name the choices"),
        (["optimizer.lr=interval(2, 1)"], "E-TUNE: optimizer.lr=interval(2, 1): "),
        (["optimizer.lr=tag(log, interval(0, 1))"], "E-TUNE: optimizer.lr=tag(log, interval(0, 1)): "),
        (["trials=0"], "E-TUNE: trials=0: give a number of at least 1"),
        (["jobs=two"], "E-TUNE: jobs=two: give a number of at least 1"),
        (["budget=soon"], "E-BUDGET: budget=soon: give a time"),
        (["most_memory=much"], "E-MEMORY"),
        (["earlier=nowhere"], "E-RUN: nowhere is no folder"),
        (["data.train=missing.csv"], "E-DATA"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    words: list[str], message: str, trained: list[list[str]], refused: Refused, line: list[str], tmp_path: Path
) -> None:
    assert message in refused(*line, *words)
    assert not trained and not (tmp_path / "all" / FILE).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=1s"], "E-BUDGET: budget: one trial takes about "),
        (["monitor.metric=validation/acuracy"], "Did you mean 'validation/accuracy' or"),
        (["monitor.metric=test/accuracy"], "E-MONITOR: monitor.metric: test/accuracy is not measured."),
    ],
)
def test_a_budget_and_a_metric_are_tried_before_anything_runs(
    words: list[str], message: str, refused: Refused, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "_seconds_of_short_run", lambda *_: 1.0)
    assert message in refused(*line, *words)
    assert not list(tmp_path.glob("all/adapter*"))


def test_a_search_of_other_settings_has_another_folder(
    trained: list[list[str]], in_process: InProcess, refused: Refused, line: list[str]
) -> None:
    line.append("adapter.rank=1,4")
    assert in_process(*line) == 0
    assert "has a search of other settings" in refused(*line, "data.batch_size=4")


def test_without_optuna_it_is_told_how_to_get_it(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loralight.commands.tune.find_spec", lambda _: None)
    assert 'E-PACKAGE: loralight tune needs optuna: pip install "loralight[tune]"' in refused("tune")


def test_a_search_that_is_killed_goes_on_with_the_process_that_it_left(
    trained: list[list[str]],
    in_process: InProcess,
    line: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line += ["adapter.rank=1,2", "probe=false"]
    code = (
        "from loralight.cli import run; from loralight.commands.tuning.plan import Plan\n"
        f"Plan.seconds_of_trial = lambda *_: 1.0; run({line!r})"
    )
    # stopped while it reads its rows, a trial would keep the lock of a cache that both have
    own = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as search:
        while not list(tmp_path.glob("all/*/.hydra/config.yaml")):
            assert search.poll() is None
            time.sleep(0.1)
        (run,) = (config.parent.parent for config in tmp_path.glob("all/*/.hydra/config.yaml"))
        left = json.loads((run / ".hydra" / "lock.json").read_text())["process"]
        os.kill(left, signal.SIGSTOP)  # until it is waited for
        search.kill()

    def sleep(seconds: float) -> None:
        os.kill(left, signal.SIGCONT)
        time.sleep(seconds)

    monkeypatch.setattr("loralight.commands.processes.sleep", sleep)
    try:
        assert in_process(*line) == 0
    finally:
        if not (run / "summary.json").exists():
            os.kill(left, signal.SIGKILL)
    assert search.returncode == -signal.SIGKILL
    assert "1/2 trials" in capsys.readouterr().out
    assert len(trained) == 1, "the other trial"
    begun = [one for one in trials(tmp_path / "all") if "begun" in one.user_attrs]
    states = [(one.state.name, one.user_attrs["words"]) for one in begun]
    assert [state for state, _ in states] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert states[0][1] == states[1][1] != states[2][1]
    assert len(json.loads((tmp_path / "all" / "tune.json").read_text())["runs"]) == 2
    assert not list(tmp_path.glob("all/*/metrics.1.csv"))  # neither was resumed, as neither was cut


def space(*words: str) -> Space:
    return Space.of(["trainer.max_epochs=1", *words])


def test_words_mean_distributions() -> None:
    found = space(
        "adapter=lora,dora", "+a.rank=int(interval(1,3))", "a.rate=tag(log, interval(1e-4,1e-2))", "b='x y',z"
    )
    assert found.fixed == ["trainer.max_epochs=1"]
    assert str(found) == "adapter lora,dora, +a.rank 1 to 3, a.rate 0.0001 to 0.01 (log), b 'x y',z"
    params = {"adapter": "lora", "+a.rank": 2, "a.rate": 0.00123456, "b": "'x y'"}
    assert found.words(params) == ["adapter=lora", "+a.rank=2", "a.rate=0.00123", "b='x y'"]
    assert found.size is None and space("a=1,2", "b=int(interval(1,3))").size == 6
    settings = {"names.adapter": "lora", "a.rank": 2, "a.rate": 0.00123456, "b": "x y"}
    assert found.point_of(settings) == params
    assert found.point_of({**settings, "a.rank": 4}) is None and found.point_of({**settings, "b": "y"}) is None
    ends = [words[1:3] for words in found.corners() if words[0] == "adapter=lora" and words[3] == "b='x y'"]
    assert ends == [
        ["+a.rank=1", "a.rate=0.0001"],
        ["+a.rank=2", "a.rate=0.0001"],
        ["+a.rank=3", "a.rate=0.0001"],
        ["+a.rank=1", "a.rate=0.01"],
    ]


def one_more(proposals: Proposals) -> optuna.Trial:
    trial = proposals.next()
    assert trial is not None
    return trial


def test_a_trial_that_was_cut_is_the_next_one_and_counts_once(tmp_path: Path) -> None:
    searched = space("adapter.rank=1,2,4", "a=interval(0,1)")
    before = Proposals(tmp_path, searched, mode="max")
    ended, cut = one_more(before), one_more(before)
    before.begin(ended)
    before.end(ended, 0.5)
    before.begin(cut)
    cut.set_user_attr("error", "killed before it was told")
    assert before.num == 1 and not before.failures
    after = Proposals(tmp_path, searched, mode="max")
    assert after.num == 1 and not after.failures
    again = one_more(after)
    assert again.user_attrs["words"] == cut.user_attrs["words"]
    after.begin(again)
    assert after.num == 2
    assert one_more(after).user_attrs["words"] not in [cut.user_attrs["words"], ended.user_attrs["words"]]
    with pytest.raises(InputError, match="E-TUNE"):
        Proposals(tmp_path, space("adapter.rank=1,2"), mode="max")


def test_what_the_machine_made_fail_is_tried_again_when_the_search_goes_on_and_what_is_wrong_is_not(
    tmp_path: Path,
) -> None:
    searched = space("adapter.rank=1,2,4")
    before = Proposals(tmp_path, searched, mode="max")
    killed, wrong, ended = (one_more(before) for _ in range(3))
    for trial in (killed, wrong, ended):
        before.begin(trial)
    before.fail(killed, "exit code -9: ")
    before.fail(wrong, "exit code 2: loralight: E-RANK: adapter.rank is 4")
    before.end(ended, 0.5)
    assert len(before.failures) == 2 and not before.has_waiting and before.next() is None
    for _ in range(2):  # the second after a kill before the trial
        after = Proposals(tmp_path, searched, mode="max")
        assert after.has_waiting
    again = one_more(after)
    assert again.user_attrs["words"] == killed.user_attrs["words"]
    after.begin(again)
    after.end(again, 0.6)
    assert [*after.failures] == [" ".join(wrong.user_attrs["words"])] and after.num == 2
    assert not after.has_waiting and after.next() is None
    assert not Proposals(tmp_path, searched, mode="max").has_waiting


def test_a_trial_worse_than_the_median_is_given_up_after_its_second_validation(tmp_path: Path) -> None:
    proposals = Proposals(tmp_path, space("a=interval(0,1)"), mode="max")
    for _ in range(5):
        trial = one_more(proposals)
        for number, score in enumerate([0.5, 0.6]):
            trial.report(score, number)
        proposals.end(trial, 0.6)
    trial = one_more(proposals)
    pruning = Pruning(trial, tmp_path, "validation/accuracy")
    (tmp_path / "metrics.1.csv").write_text("step,validation/accuracy\n9,0.1\n")
    assert not pruning()
    (tmp_path / "metrics.csv").write_text("step,validation/accuracy\n9,0.1\n10,0.2\n19,0.")  # a line not yet whole
    assert not pruning() and pruning.scores == [0.1]  # 10: of the best checkpoint, after training
    (tmp_path / "metrics.csv").write_text("step,validation/accuracy\n9,0.1\n10,0.2\n19,0.55\n")
    assert pruning() and pruning.scores == [0.1, 0.55]
