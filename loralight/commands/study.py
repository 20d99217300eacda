"""``loralight study``: compares methods of fine-tuning on the user's own data, each at its best learning rate.

A method is tried at its own learning rate, a lower one and a higher one. One of these is better than its own if the
difference is more than what the choice of validation rows may bring, see `is_told_apart`. An optimum at the edge of a
grid is not reliable, so the grid grows until the best rate has a worse rate on each side. At the best rate the method
runs with further seeds. Each run is a separate process of ``loralight train`` with its own folder. So its memory is
measured alone, and the same command in the same folder does only the missing runs. Those that do not wait for one
another are made side by side.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.run_folder import FAILED
from loralight.commands.processes import Processes
from loralight.commands.study_cost import Cost, Missing, cost_of_runs
from loralight.commands.sweep import folder_name
from loralight.commands.time_to_go import TimeToGo
from loralight.commands.trial import is_solved
from loralight.config.build import check_config, make
from loralight.config.composition import plain, settings_of
from loralight.config.first_look import first_look
from loralight.config.own_data import with_own_data
from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.row_by_row import is_told_apart
from loralight.reports.runs import SUMMARY, FinishedRun, read_run
from loralight.reports.sweeps import note_failure, write_report
from loralight.stopping import Stopped
from loralight.training.epochs import Epochs
from loralight.training.rate_grid import FACTOR, best_power, is_at_end, next_powers
from loralight.training.time_budget import parse_time

_WORDS, _LENGTH, _COST = "study.words.json", "study.length.json", "study.cost.json"
_LEFT_OUT = "study.left_out.json"
_LONG = 20  # minutes
_GROWN = 0.5  # rates that a method needs beyond three: 6 for 11 methods, in two studies of the demo


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
    flags = [f"--config-dir={Path(one).absolute()}" for one in sources]
    is_usual = "methods" not in map(_name, hydra.overrides.task)
    study = Study(Path(hydra.runtime.output_dir), settings, flags, is_usual=is_usual)
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
        is_solved: whether its runs take no steps, as far as the head allows; the first one tells.
        sign: 1 if a higher score is better, else -1.
    """

    words: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False, hash=False, compare=False)
    lr: float | None
    is_solved: bool
    sign: int

    @property
    def name(self) -> str:
        return " ".join(self.words)


class Study:
    """Runs of several methods, in a folder.

    Args:
        folder: the folder of all runs.
        settings: see ``conf/study.yaml``.
        flags: flags of the command line for each run.
        is_usual: whether nobody has chosen the methods: those that the model or the task cannot have are left out.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], flags: list[str], *, is_usual: bool = False) -> None:
        self._is_usual = is_usual
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
        self._lengths = [one for one in self.words if _name(one) in ("trainer.max_epochs", "trainer.max_steps")]
        self.budget: float | None = None
        self.length: Epochs | None = None
        if settings["budget"] is not None:
            self.budget = parse_time(settings["budget"])
            if self._lengths:
                raise InputError(
                    "E-BUDGET", f"{self._lengths[0]}: budget= decides how long runs are; leave out one of the two"
                )
        self.methods = [self._method(shlex.split(str(one))) for one in settings["methods"]]
        if len({method.words for method in self.methods}) != len(self.methods) or not self.methods:
            raise InputError("E-STUDY", "methods= has one twice, or none: give methods=lora,dora,full, say")
        self._kept_words = [*self.words, *([] if self.budget is None else [f"budget={self.budget:g}"])]
        self._check_words()
        self._leave_out_methods({})
        self.processes = Processes(settings["jobs"], flags)
        self.chosen: dict[Method, list[FinishedRun]] = {}
        self.failures: dict[str, str] = {}
        self._ended: dict[Path, FinishedRun | None] = {}  # None: it failed
        self._told: set[Path] = set()
        self._told_apart: dict[tuple[Path, Path], bool] = {}  # runs' scores
        self._time_to_go = TimeToGo(self.folder / _COST, self.processes.jobs)
        self._one_at_a_time = Lock()  # runs end in several threads

    def run(self) -> None:
        """Do all missing runs."""
        self._read_ended()
        missing = self._missing()
        self._estimate(missing)
        (self.folder / _WORDS).write_text(json.dumps(self._kept_words) + "\n", encoding="utf-8")
        cut = f" of {self.length.number} epochs each" if self.length else ""
        done = f", {len(self._ended)} of them done" if self._ended else ""
        minutes = self._minutes()
        is_free = self.budget is None and not self._lengths and not self._ended
        shorter = f" (by fewer epochs half of it: budget={minutes / 2:.0f}min)" if is_free and minutes > _LONG else ""
        logs.show(
            f"methods: {len(self.methods)}; seeds of each: {self.seeds}; runs: {self._num_runs()} or more{cut}{done}, "
            f"{self.processes.jobs} at a time, about {minutes:.0f} min{shorter}, in {self.folder}"
        )
        with self.processes.ending() as pool:
            for ended in as_completed([pool.submit(self._run_method, method) for method in self.methods]):
                ended.result()

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
            is_solved=is_solved(of_run, is_probe=make(of_run["adapter"]).is_probe),
            sign=1 if of_run["monitor"]["mode"] == "max" else -1,
        )

    def _planned(self, method: Method) -> tuple[list[list[Path]], bool]:
        """The folders of a method's runs, as far as those that have ended tell, and whether its grid may grow.

        Each list waits for the one before it, whose runs are made side by side.
        """

        def place(power: int, seed: int = 0) -> Path:
            return self._place(_words(method, power, seed))

        runs: dict[int, FinishedRun | None] = {}
        planned: list[list[Path]] = []
        while powers := self._next_powers(method, runs):
            runs |= {power: self._ended.get(place(power)) for power in powers}  # a missing run is taken for the worst
            planned.append([*map(place, powers)])
        is_open = place(0) not in self._ended and method.lr is not None and not method.is_solved
        if is_open:
            runs |= {power: self._ended.get(place(power)) for power in (-1, 1)}
            planned.append([place(-1), place(1)])
        elif place(0) in self._ended and runs[0] is None:
            return planned, False
        rates = [place(power) for power in runs]
        planned.append([place(best_power(self._scores(method, runs)), seed) for seed in range(1, self.seeds)])
        return planned, is_open or (len(rates) > 1 and not self._ended.keys() >= {*rates})

    def _folders(self, method: Method) -> set[Path]:
        return {folder for some in self._planned(method)[0] for folder in some}

    def _read_ended(self) -> None:
        """Read the runs in the folder that have ended well."""
        for method in self.methods:
            while found := [one for one in self._folders(method) - self._ended.keys() if _is_finished(one)]:
                self._ended.update({folder: read_run(folder) for folder in found})

    def _missing(self) -> dict[Method, Missing]:
        """The runs that each method still lacks."""
        missing = {}
        for method in self.methods:
            planned, may_grow = self._planned(method)
            left = [{*folders} - self._ended.keys() for folders in planned]
            grown = _GROWN * may_grow
            missing[method] = Missing(number=sum(map(len, left)) + grown, in_turn=sum(map(bool, left)) + grown)
        return missing

    def _num_runs(self) -> int:
        """The least number of runs of the study."""
        return len(self._told.union(*map(self._folders, self.methods)))

    def _minutes(self) -> float:
        """The minutes until all runs have ended."""
        return self._time_to_go.seconds({method.name: some for method, some in self._missing().items()}) / 60

    def _estimate(self, missing: Mapping[Method, Missing]) -> None:
        """Estimate what a run takes of methods that have none yet, and choose the length of all runs for a budget."""
        timed = {
            method: some for method, some in missing.items() if some.number and not self._time_to_go.knows(method.name)
        }
        methods = [([*self._of_runs, *method.words], method.settings, some) for method, some in timed.items()]
        cost = cost_of_runs(self.processes, self.folder, methods, may_refuse=self._is_usual)
        if cost.refused:
            refused = {list(timed)[place].name: str(error) for place, error in cost.refused.items()}
            self._leave_out_methods(refused)
            timed = {method: some for method, some in timed.items() if method.name not in refused}
        if self.budget is not None:
            self.length = self._length(cost, self.budget)
        each = cost.each(self.length.number if self.length else None)
        self._time_to_go.expect({method.name: seconds for method, seconds in zip(timed, each, strict=True)})

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
        if self.length is None or method.is_solved:
            return []
        every = f"++trainer.check_val_every_n_epoch={self.length.validated_every}"
        return [f"trainer.max_epochs={self.length.number}", every]

    def _leave_out_methods(self, refused: Mapping[str, str]) -> None:
        """Leave out methods that the model cannot have, by their names, with those that an earlier command left out."""
        file = self.folder / _LEFT_OUT
        left_out = {**(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}), **refused}
        if refused:
            file.write_text(json.dumps(left_out) + "\n", encoding="utf-8")
        for name, error in left_out.items():
            logs.show(f"{name} is left out: {error}")
        self.methods = [method for method in self.methods if method.name not in left_out]

    def _check_words(self) -> None:
        """Raise if the folder has a study with other overrides."""
        file = self.folder / _WORDS
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != self._kept_words:
            raise InputError("E-STUDY", f"{self.folder} has a study with other settings; choose another hydra.run.dir=")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _run_method(self, method: Method) -> None:
        """Find a method's rate with the first seed, then run it with the other seeds."""
        runs: dict[int, FinishedRun | None] = {}
        while powers := self._next_powers(method, runs):
            runs |= zip(powers, self._runs(method, [(power, 0) for power in powers]), strict=True)
        scores = self._scores(method, runs)
        if is_at_end(scores):
            logs.show(
                f"{' '.join(method.words)}: its best rate is the farthest that is tried, and a better one may lie "
                "beyond: give another in its words (optimizer.lr=), by which it is then run"
            )
        if (best := runs[best_power(scores)]) is not None:
            others = self._runs(method, [(best_power(scores), seed) for seed in range(1, self.seeds)])
            self.chosen[method] = [best, *(run for run in others if run is not None)]

    def _next_powers(self, method: Method, runs: Mapping[int, FinishedRun | None]) -> list[int]:
        """The next rates to try, after that of power 0; none once the best is known."""
        is_searched = not runs or (method.lr is not None and _has_steps(runs[0]))
        return next_powers(self._scores(method, runs)) if is_searched else []

    def _scores(self, method: Method, runs: Mapping[int, FinishedRun | None]) -> dict[int, float | None]:
        """The scores by power; one that is better than that of the method's own rate by chance is taken for as good."""
        scores, own = {power: _score(run, method) for power, run in runs.items()}, runs.get(0)
        for power, run in runs.items():
            score, least = scores[power], scores.get(0)
            if run and own and score is not None and least is not None and score > least:
                pair = run.folder, own.folder
                if pair not in self._told_apart:
                    self._told_apart[pair] = is_told_apart(run, own, run.monitored)
                scores[power] = score if self._told_apart[pair] else least
        return scores

    def _runs(self, method: Method, of: Sequence[tuple[int, int]]) -> list[FinishedRun | None]:
        """The runs of some rates (powers) and seeds, side by side where there are places that no method takes."""
        with ThreadPoolExecutor(self.processes.jobs) as pool:
            return list(pool.map(lambda one: self._run(method, *one), of))

    def _run(self, method: Method, power: int, seed: int) -> FinishedRun | None:
        """A finished run, which is trained now if it is missing; None if it failed."""
        words = _words(method, power, seed)
        name, folder = " ".join(words), self._place(words)
        is_whole = not folder.exists()

        def begin() -> None:
            with self._one_at_a_time:
                self._time_to_go.begin(folder, method.name)

        line = [*self._of_runs, *self._words_of_length(method), *words]
        error = self.processes.finish(line, folder, begin=begin)
        run = None if error is not None else read_run(folder)
        if run is None:
            note_failure(folder, str(error))
            self.failures[name] = str(error)
            told = f"{name} failed: {error}"
        else:
            (folder / FAILED).unlink(missing_ok=True)
            score = run.score(run.monitored)
            told = f"{name}: {run.monitored} {'not finite' if score is None else f'{score:.4f}'}"
        with self._one_at_a_time:
            self._ended[folder] = run
            self._told.add(folder)
            self._time_to_go.end(folder, is_whole=is_whole and run is not None)
            logs.show(f"{len(self._told)}/{self._num_runs()}, {self._minutes():.0f} min to go: {told}")
        return run


def _words(method: Method, power: int, seed: int) -> list[str]:
    """The overrides of a run that are not the study's own."""
    if method.lr is None or (method.is_solved and power == 0):
        return [*method.words, f"seed={seed}"]
    return [*method.words, f"optimizer.lr={method.lr * FACTOR**power:.3g}", f"seed={seed}"]


def _is_finished(folder: Path) -> bool:
    return (folder / SUMMARY).exists()


def _name(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _score(run: FinishedRun | None, method: Method) -> float | None:
    score = None if run is None else run.score(run.monitored)
    return None if score is None else method.sign * score


def _has_steps(run: FinishedRun | None) -> bool:
    """Whether a run was trained by steps; a linear probe that was solved for has no learning rate."""
    return run is not None and run.summary.get("steps") != 0
