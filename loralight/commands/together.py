"""``loralight together``: several runs in one process, with a single copy of the frozen weights in memory."""

import shlex
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from loralight import logs, stopping
from loralight.adapters.base import trainable
from loralight.adapters.multi.sharing import share_
from loralight.artifacts.lock import release
from loralight.artifacts.run_folder import going_on, take
from loralight.artifacts.run_settings import with_those_of_a_run
from loralight.commands.batch_norm import with_batch_norm
from loralight.commands.next_commands import how_to_go_on
from loralight.commands.train import Run
from loralight.commands.trial import check_trial
from loralight.config.build import check_config
from loralight.config.composition import plain, settings_of
from loralight.config.overrides import folder_of
from loralight.config.own_data import with_own_data
from loralight.disk import telling_of_disk
from loralight.errors import InputError
from loralight.logs import human
from loralight.stopping import Stopped
from loralight.training.launch import num_processes
from loralight.training.out_of_memory import telling_of_memory
from loralight.training.preflight import num_bytes


def main(config: DictConfig) -> None:
    """The job that Hydra runs: check and build all runs, then train them in turns."""
    given, folder = plain(config), Path(HydraConfig.get().runtime.output_dir)
    if not given["runs"]:
        raise InputError("E-RUN", 'no run is given; give each a name and its settings: runs.a="data.train=my.csv"')
    lines = {name: shlex.split(f"{given['each'] or ''} {words or ''}") for name, words in given["runs"].items()}
    overrides = {name: with_those_of_a_run("train", with_own_data(line)) for name, line in lines.items()}
    folders = {name: _resumed(line) or folder / name for name, line in lines.items()}
    if len({path.resolve() for path in folders.values()}) < len(folders):
        raise InputError("E-RUN", "two of the runs would go on in one folder; give each its own resume=")
    settings = {name: settings_of("train", overrides[name], folders[name]) for name in lines}
    for name, of_run in settings.items():
        check_config(of_run)
        if num_processes(of_run["trainer"]) > 1:
            raise InputError("E-DEVICES", f"{name}: runs that share a base are in one process; take trainer.devices=1")
        check_trial(of_run, alone=False)
        if of_run["auto_batch"]:
            raise InputError("E-AUTO-BATCH", f"{name}: what fits depends on the other runs; give data.batch_size")
    settings = {name: going_on(folders[name], of_run) for name, of_run in settings.items()}
    decided = {name: with_batch_norm(of_run, overrides[name]) for name, of_run in settings.items()}
    settings = {name: of_run for name, (of_run, _) in decided.items()}
    try:
        with stopping.held():
            for name in settings:
                take(folders[name], *decided[name])
        stopping.check()
        logs.configure(folder / "train.log", line="%(threadName)s: %(message)s")
        turns, runs = Turns(settings), {}
        for name, of_run in settings.items():
            threading.current_thread().name = name
            runs[name] = Run(of_run, folders[name], callbacks=[turns.of(name)], bar=False)
        threading.current_thread().name = "together"
        share_base_(runs)
        turns.train(runs)
    except Stopped as stopped:
        raise Stopped(stopped.by, how_to_go_on(folders)) from None
    finally:
        for of_run_folder in folders.values():
            release(of_run_folder)


def _resumed(line: list[str]) -> Path | None:
    return next((folder_of(word) for word in line if word.startswith("resume=")), None)


def share_base_(runs: Mapping[str, Run]) -> None:
    """Have all runs share the frozen tensors of the run with the fewest trainable parameters.

    Raises:
        InputError: the base models of the runs differ (``E-BASE``).
    """
    before = sum(num_bytes(run.task.model.parameters()) for run in runs.values())
    first, *others = sorted((run.task for run in runs.values()), key=lambda task: len(trainable(task.model)))
    for task in others:
        learns = {*first.trainable_tensors(), *task.trainable_tensors()}
        share_(task.model, first.model, learns=learns, origin=type(task).__name__)
    after = num_bytes({id(p): p for run in runs.values() for p in run.task.model.parameters()}.values())
    logs.logger.info("%d runs on one base: weights of %s, by themselves %s", len(runs), human(after), human(before))


class Turns:
    """Threads that run one at a time, in turns of one batch, as in a loop over the runs.

    Each step seeds the process's random generator and draws from it. No other run may draw in between, so that each
    run computes the same as by itself. Lightning moves a model off the GPU when its training ends, and shared tensors
    with it, so each run waits for all others before that.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._waiting = deque((name, threading.Semaphore(0)) for name in names)
        self._training = set(names)
        self.failures: dict[str, Exception] = {}
        self._are_cut = False
        self.has_stopped = False

    def train(self, runs: Mapping[str, Run]) -> None:
        """Train all runs, then raise the error of the first run that failed.

        Raises:
            Stopped: the process was told to stop; each run has stopped after a step by then.
        """
        threads = [threading.Thread(target=self._train, args=run, name=run[0], daemon=True) for run in runs.items()]
        with stopping.held():
            for thread in threads:
                thread.start()
            self._waiting[0][1].release()
            try:
                for thread in threads:
                    thread.join()
            except BaseException:  # whatever ends the command: its threads must not go on if the process does
                self._are_cut = True
                for thread in threads:
                    thread.join(timeout=60)  # a batch at most
                raise
        for name, error in self.failures.items():
            logs.logger.error("%s failed: %s", name, error)
        if self.has_stopped:
            stopping.check()
        for error in self.failures.values():
            raise error

    def _train(self, name: str, run: Run) -> None:
        dict(self._waiting)[name].acquire()
        try:
            with telling_of_disk(run.output_dir), telling_of_memory(run.config, run.output_dir):
                run.train()
        except Exception as error:  # the other runs go on
            self.failures[name] = error
        except Stopped:
            self.has_stopped = True
        except _Cut:
            pass
        finally:
            self._training.discard(name)
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0][1].release()

    def of(self, name: str) -> lightning.Callback:
        """The callback by which a run takes its turns."""
        return _Turn(self, name)

    def next(self) -> None:
        """Let each other run have a turn."""
        if not self._are_cut:
            mine = self._waiting[0][1]
            self._waiting.rotate(-1)
            self._waiting[0][1].release()
            mine.acquire()
        if self._are_cut:
            raise _Cut

    def wait_for_all(self, name: str) -> None:
        """Let the other runs have turns until none of them trains."""
        self._training.discard(name)
        while self._training:
            self.next()


class _Cut(BaseException):
    """Ends a run whose command has ended."""


class _Turn(lightning.Callback):
    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name

    def on_train_batch_end(self, *_: Any) -> None:
        self._turns.next()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._turns.wait_for_all(self._name)
            logs.show(f"\n{self._name}")  # above its results

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._turns.wait_for_all(self._name)
