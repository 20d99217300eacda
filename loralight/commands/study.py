"""``loralight study``: compares methods of fine-tuning on the user's own data, each at its best learning rate.

A method is tried at its own learning rate, a lower one and a higher one. An optimum at the edge of a grid is not
reliable, so the grid grows until the best rate on validation rows has a worse rate on each side. At the best rate the
method runs with further seeds. Each run is a separate process of ``loralight train`` with its own folder. So its memory
is measured alone, and the same command in the same folder does only the missing runs.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import astuple, dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.run_folder import FAILED
from loralight.commands.processes import Processes
from loralight.commands.study_cost import Cost, cost_of_study
from loralight.commands.sweep import folder_name
from loralight.config.build import check_config, make
from loralight.config.composition import plain, settings_of
from loralight.config.first_look import first_look
from loralight.config.own_data import with_own_data
from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import SUMMARY, FinishedRun, read_run
from loralight.reports.sweeps import note_failure, write_report
from loralight.stopping import Stopped
from loralight.training.epochs import Epochs
from loralight.training.rate_grid import FACTOR, best_power, is_at_end, next_power
from loralight.training.time_budget import parse_time

_WORDS, _LENGTH = "study.words.json", "study.length.json"


def main(config: DictConfig) -> None:
    """The job that Hydra runs.

    Raises:
        InputError: a setting is wrong, before anything runs (``E-STUDY``, and the errors of `loralight train`); or some
            runs have failed, once all others are done (``E-STUDY``).
        Stopped: a signal ended the study.
    """
    logs.configure()
    hydra, settings = HydraConfig.get(), plain(config)
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    study = Study(Path(hydra.runtime.output_dir), settings, [f"--config-dir={Path(one).absolute()}" for one in sources])
    try:
        study.run()
    except Stopped as stopped:
        again = f"give the same command with hydra.run.dir={shlex.quote(str(study.folder))}, which does what is missing"
        raise Stopped(stopped.by, again) from None
    study.report()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method in a study.

    Args:
        words: overrides of ``loralight train``, such as ``adapter=lora``.
        settings: of `loralight train`, with these and the study's own overrides.
        lr: the method's own learning rate; None if ``words`` set a rate, which is kept.
        sign: 1 if a higher score is better, else -1.
    """

    words: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False, hash=False, compare=False)
    lr: float | None
    sign: int


class Study:
    """Runs of several methods, in a folder.

    Args:
        folder: the folder of all runs.
        settings: see ``conf/study.yaml``.
        flags: flags of the command line for each run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], flags: list[str]) -> None:
        self.folder, self.words, self.seeds = folder, [str(word) for word in settings["words"]], settings["seeds"]
        for name, number in (("seeds", self.seeds), ("jobs", 1 if settings["jobs"] is None else settings["jobs"])):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InputError("E-STUDY", f"{name}={number}: give a number of at least 1")
        if taken := [word for word in self.words if _name(word) in ("optimizer.lr", "adapter.lr", "seed")]:
            raise InputError(
                "E-STUDY", f"{taken[0]}: a study chooses rates and seeds. A method's own words may give its rate"
            )
        probe = [] if "probe" in map(_name, self.words) else ["probe=false"]  # `linear_probe` is a method of its own
        self._of_runs = [*self.words, *probe]
        self.budget: float | None = None
        self.length: Epochs | None = None
        if settings["budget"] is not None:
            self.budget = parse_time(settings["budget"])
            if taken := [word for word in self.words if _name(word) in ("trainer.max_epochs", "trainer.max_steps")]:
                raise InputError("E-BUDGET", f"{taken[0]}: budget= decides how long runs are; leave out one of the two")
        self.methods = [self._method(shlex.split(str(one))) for one in settings["methods"]]
        if len({method.words for method in self.methods}) != len(self.methods) or not self.methods:
            raise InputError("E-STUDY", "methods= has one twice, or none: give methods=lora,dora,full, say")
        self._kept_words = [*self.words, *([] if self.budget is None else [f"budget={self.budget:g}"])]
        self._check_words()
        self.processes = Processes(settings["jobs"], flags)
        self.chosen: dict[Method, list[FinishedRun]] = {}
        self.failures: dict[str, str] = {}
        self._progress = _Progress(sum(map(self._num_runs, self.methods)))

    def run(self) -> None:
        """Do all missing runs."""
        first = [*self._of_runs, *self.methods[0].words]
        missing = [(method.settings, self._num_missing(method)) for method in self.methods]
        cost = cost_of_study(self.processes, first, missing)
        if self.budget is not None:
            self.length = self._length(cost, self.budget)
        (self.folder / _WORDS).write_text(json.dumps(self._kept_words) + "\n", encoding="utf-8")
        minutes = cost.seconds(self.length.number if self.length else None) / 60
        cut = f" of {self.length.number} epochs each" if self.length else ""
        logs.show(
            f"methods: {len(self.methods)}; seeds of each: {self.seeds}; runs: {self._progress.expected} or more{cut}, "
            f"{self.processes.jobs} at a time, about {minutes:.0f} min or more, in {self.folder}"
        )
        self._progress.begin(self.processes.jobs)
        with self.processes.ending() as pool:
            for done in as_completed([pool.submit(self._run_method, method) for method in self.methods]):
                done.result()

    def report(self) -> None:
        """Print and write a comparison of the runs.

        Raises:
            InputError: some runs have failed (``E-STUDY``).
        """
        if runs := [run for method in self.methods for run in self.chosen.get(method, [])]:
            comparison = Comparison.of(runs, failures=self.failures)
            files = write_report(comparison, self.folder, f"study {self.folder.name}", "study")
            logs.show("", *comparison.shown(f"study {self.folder}"), "", *map(str, files))
        if self.failures:
            raise InputError(
                "E-STUDY",
                f"{len(self.failures)} of the runs failed, see above; they are tried again by the same command with "
                f"hydra.run.dir={self.folder}",
            )

    def _method(self, words: list[str]) -> Method:
        """A method, after checking its settings; a word without ``=`` is the name of an adapter."""
        words = [word if "=" in word else f"adapter={word}" for word in words]
        of_run = settings_of("train", with_own_data([*self._of_runs, *words]), self.folder)
        first_look(of_run)
        check_config(of_run)
        is_given = any(_name(word) in ("optimizer.lr", "adapter.lr") for word in words)
        return Method(
            words=tuple(words),
            settings=of_run,
            lr=None if is_given else float(of_run["adapter"]["lr"]),
            sign=1 if of_run["monitor"]["mode"] == "max" else -1,
        )

    def _num_runs(self, method: Method) -> int:
        """The runs of a method, if the first three rates have the best one between them."""
        return int(self.seeds) + (2 if method.lr else 0)

    def _num_missing(self, method: Method) -> int:
        """The least number of runs that are still to be made, after those in the folder."""

        def place(power: int, seed: int) -> Path:
            return self._place(_words(method, power, seed))

        def is_there(power: int, seed: int) -> bool:
            return (place(power, seed) / SUMMARY).exists()

        runs: dict[int, FinishedRun | None] = {}
        power: int | None = 0
        while power is not None:
            runs[power] = read_run(place(power, 0)) if is_there(power, 0) else None  # taken for the worst
            power = _next_power(method, runs)
        if runs[0] is None and method.lr is not None:
            runs |= {power: None for power in (-1, 1) if not is_there(power, 0)}
        best = best_power(_scores(method, runs))
        return list(runs.values()).count(None) + sum(not is_there(best, seed) for seed in range(1, self.seeds))

    def _place(self, words: Sequence[str]) -> Path:
        """The folder of a run."""
        return self.folder / folder_name("_".join(words))

    def _length(self, cost: Cost, budget: float) -> Epochs | None:
        """The length of all runs for a budget, which a study that goes on has from its beginning; None: their own."""
        file = self.folder / _LENGTH
        if not file.exists():
            found = cost.epochs_for(budget)
            file.write_text(json.dumps(found and astuple(found)) + "\n", encoding="utf-8")
            return found
        kept = json.loads(file.read_text(encoding="utf-8"))
        return None if kept is None else Epochs(*map(int, kept))

    def _words_of_length(self, method: Method) -> list[str]:
        """The overrides for the length of a run, if it takes steps and a budget cuts it short."""
        if self.length is None or make(method.settings["adapter"]).is_probe:
            return []
        every = f"++trainer.check_val_every_n_epoch={self.length.validated_every}"
        return [f"trainer.max_epochs={self.length.number}", every]

    def _check_words(self) -> None:
        """Raise if the folder has a study with other overrides."""
        file = self.folder / _WORDS
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != self._kept_words:
            raise InputError("E-STUDY", f"{self.folder} has a study with other settings; choose another hydra.run.dir=")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _run_method(self, method: Method) -> None:
        """Find a method's rate with the first seed, then run it with the other seeds."""
        runs: dict[int, FinishedRun | None] = {}
        power: int | None = 0
        while power is not None:
            runs[power] = self._run(method, power, seed=0)
            power = _next_power(method, runs)
        scores = _scores(method, runs)
        if is_at_end(scores):
            logs.show(
                f"{' '.join(method.words)}: its best rate is the farthest that is tried, and a better one may lie "
                "beyond: give another in its words (optimizer.lr=), by which it is then run"
            )
        if (best := runs[best_power(scores)]) is not None:
            others = [self._run(method, best_power(scores), seed=seed) for seed in range(1, self.seeds)]
            self.chosen[method] = [best, *(run for run in others if run is not None)]

    def _run(self, method: Method, power: int, *, seed: int) -> FinishedRun | None:
        """A finished run, which is trained now if it is missing; None if it failed."""
        words = _words(method, power, seed)
        name, folder = " ".join(words), self._place(words)
        is_new = not (folder / SUMMARY).exists()
        line = [*self._of_runs, *self._words_of_length(method), *words]
        if (error := self.processes.finish(line, folder)) is not None:
            note_failure(folder, error)
            self.failures[name] = error
            self._progress.tell(f"{name} failed: {error}", is_new=is_new)
            return None
        (folder / FAILED).unlink(missing_ok=True)
        run = read_run(folder)
        score = run.score(run.monitored)
        told = "not finite" if score is None else f"{score:.4f}"
        self._progress.tell(f"{name}: {run.monitored} {told}", is_new=is_new)
        return run


def _words(method: Method, power: int, seed: int) -> list[str]:
    """The overrides of a run that are not the study's own."""
    rate = [] if method.lr is None else [f"optimizer.lr={method.lr * FACTOR**power:.3g}"]
    return [*method.words, *rate, f"seed={seed}"]


def _name(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _scores(method: Method, runs: Mapping[int, FinishedRun | None]) -> dict[int, float | None]:
    return {power: _score(run, method) for power, run in runs.items()}


def _next_power(method: Method, runs: Mapping[int, FinishedRun | None]) -> int | None:
    """The next rate to try, after at least that of power 0; None once the best is known."""
    return next_power(_scores(method, runs)) if method.lr is not None and _has_steps(runs[0]) else None


def _score(run: FinishedRun | None, method: Method) -> float | None:
    score = None if run is None else run.score(run.monitored)
    return None if score is None else method.sign * score


def _has_steps(run: FinishedRun | None) -> bool:
    """Whether a run was trained by steps; a linear probe that was solved for has no learning rate."""
    return run is not None and run.summary.get("steps") != 0


@dataclass
class _Progress:
    """Prints a line for each run that has ended, with the time that the remaining runs may take.

    Args:
        expected: the least number of runs.
    """

    expected: int
    done: int = 0
    new: int = 0
    jobs: int = 1
    since: float = 0.0
    one_at_a_time: Lock = field(default_factory=Lock)  # runs end in several threads

    def begin(self, jobs: int) -> None:
        """Runs begin, so many at a time."""
        self.jobs, self.since = jobs, monotonic()

    def tell(self, what: str, *, is_new: bool) -> None:
        with self.one_at_a_time:
            self.done, self.new = self.done + 1, self.new + is_new
            self.expected = max(self.expected, self.done)
            trained = max(self.new, 1) + (self.jobs - 1) / 2  # those that run beside it are half done on average
            minutes = (monotonic() - self.since) / trained * (self.expected - self.done) / 60
            to_go = f", {minutes:.0f} min to go or more" if self.new or self.done == self.expected else ""
            logs.show(f"{self.done}/{self.expected}{to_go}: {what}")
