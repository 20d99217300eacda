"""``loralight sweep``: one run for each of several values, in a folder with a comparison of the runs.

A job is a run of `loralight train`, in a folder named after the settings that vary. So the same command in the same
``hydra.sweep.dir`` does only the rest: finished jobs are skipped, interrupted jobs resume, failed jobs start again.
This module imports nothing heavy, since Hydra creates the callback before any job.
"""

import hashlib
import re
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from loralight.config.composition import compose, plain
from loralight.errors import InputError

_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_SIDE_BY_SIDE = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
_LONGEST_NAME = 100  # of a folder; disks take 255 bytes

begun: list[Path] = []
"""The folder of the sweep that this process has begun and not yet reported."""


class NoteSweep(Callback):
    """A callback of Hydra that tells the command line the folder of a sweep."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        if config.hydra.job.name == "train":
            begun[:] = [Path(config.hydra.sweep.dir)]


def words_of_a_sweep(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep, with ``seeds=5`` spelled out and job folders named after the settings that vary.

    Raises:
        InputError: ``seeds`` is not a number of seeds (``E-SEEDS``).
        HydraException: a choice does not exist; Hydra itself would find out only after the jobs before it.
    """
    spelled = [_seeds(word) if word.startswith("seeds=") else word for word in overrides]
    _check_choices(spelled)
    fixed = [name for word in spelled if (name := _fixed_name(word)) is not None]
    excluded = ",".join(sorted({name for name in fixed if re.fullmatch(r"[\w./@]+", name)}))
    return [*spelled, f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]"]


def place_job_(of_job: Any) -> None:
    """Set the folder of a sweep's running job, in Hydra's config, to one named after the settings that vary.

    If other settings varied when the job was done, its folder has another name.

    Args:
        of_job: the job's config.
    """
    config: Any = HydraConfig.instance().cfg
    if config.hydra.mode != RunMode.MULTIRUN or config.hydra.sweep.subdir != ".":
        return
    sweep = Path(config.hydra.sweep.dir).absolute()
    folder = sweep / folder_name(config.hydra.job.override_dirname)
    if not folder.exists():
        done = (summary.parent for summary in sorted(sweep.glob("*/summary.json")))
        folder = next((other for other in done if not other.is_symlink() and _is_of(of_job, other)), folder)
    folder.mkdir(parents=True, exist_ok=True)
    _place_(folder)


def take_gpu(trainer: Mapping[str, Any]) -> None:
    """Let a job that runs beside others on this machine see a GPU of its own, if it trains on one.

    On a cluster the scheduler gives each job its GPUs, and so does Ray.

    Args:
        trainer: the trainer's settings.
    """
    config = HydraConfig.get()
    is_beside = config.mode == RunMode.MULTIRUN and config.launcher.get("_target_") == _SIDE_BY_SIDE
    if not is_beside or trainer.get("accelerator") == "cpu" or trainer.get("devices", 1) not in (1, "1", "auto"):
        return
    from loralight.commands.gpus import take_one

    take_one(Path(config.sweep.dir).absolute())


def _is_of(of_job: Any, folder: Path) -> bool:
    """Whether a folder holds this job, finished."""
    from loralight.artifacts.run_folder import is_finished, read_overrides

    words = {*HydraConfig.get().overrides.task}
    try:
        before = set(read_overrides(folder))
        if not (before <= words or words <= before):  # to compare all settings takes longer
            return False
        _place_(folder)  # which some settings name
        return is_finished(folder, plain(of_job))
    except InputError:  # the folder is damaged, or the job cannot be: the job itself says which
        return False


def _place_(folder: Path) -> None:
    hydra: Any = HydraConfig.instance().cfg
    with read_write(hydra.hydra), open_dict(hydra.hydra):
        hydra.hydra.runtime.output_dir = str(folder)


def folder_name(dirname: str) -> str:
    """A folder's name from Hydra's ``override_dirname``: letters, digits, dots, ``-`` and ``_``, of limited length."""
    plain = re.sub(r"[^\w.-]+", ".", dirname).strip(".") or "defaults"
    if plain in (dirname, "defaults") and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}-{hashlib.sha256(dirname.encode()).hexdigest()[:6]}"


def failed(error: Exception) -> bool:
    """Record that the running job of a grid has failed, so that the others continue; False if no grid is running."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or hydra.sweeper.get("_target_") != _GRID:  # a search handles failures itself
        return False
    from loralight.reports.sweeps import note_failure

    told = isinstance(error, InputError)
    if not told:  # a bug of ours or a plugin's: show its place
        traceback.print_exception(error)
    folder, message = Path(hydra.runtime.output_dir), str(error) if told else f"{type(error).__name__}: {error}"
    note_failure(folder, message)
    print(f"loralight: {folder.name} failed: {message}", file=sys.stderr)
    return True


def stopped(overrides: Sequence[str], message: str | None) -> str | None:
    """The message after a sweep was told to stop: the commands that resume its job and the sweep."""
    if message is None or not begun:
        return message
    folder = begun.pop()
    return f"{message}; the sweep goes on with: {command_of(overrides, folder)}"


def end(overrides: Sequence[str]) -> None:
    """Print and write the results of this process's sweep.

    Args:
        overrides: of the command line.

    Raises:
        InputError: jobs have failed (``E-SWEEP``).
    """
    if not begun or not (folder := begun.pop()).is_dir():
        return
    from loralight import logs
    from loralight.reports.comparison import Comparison
    from loralight.reports.sweeps import BEST, NAME, finish

    read = finish(folder)
    if isinstance(read, Comparison):
        logs.show("", *read.shown(f"sweep {folder}"), "", *map(str, sorted(folder.glob(f"{NAME}.*"))))
        if read.best is not None:
            logs.show(f"best: {read.best.runs[0].folder}, which is also {folder / BEST}")
    if failures := read.failures if isinstance(read, Comparison) else read:
        jobs = "1 job has" if len(failures) == 1 else f"{len(failures)} jobs have"
        raise InputError(
            "E-SWEEP", f"{jobs} failed, see above; what is missing is done by: {command_of(overrides, folder)}"
        )


def command_of(overrides: Sequence[str], folder: Path) -> str:
    """The command line that does a sweep's missing jobs."""
    words = [word for word in overrides if not word.startswith("hydra.sweep.dir=")]
    return shlex.join(["loralight", "sweep", *words, f"hydra.sweep.dir={folder}"])


def _seeds(word: str) -> str:
    number = word.removeprefix("seeds=")
    if not number.isdigit() or not 0 < int(number) <= 1000:
        raise InputError("E-SEEDS", f"{word}: give a number of seeds, such as seeds=5 for seed=0,1,2,3,4")
    return f"seed={','.join(map(str, range(int(number))))}"


def _check_choices(words: Sequence[str]) -> None:
    """Check that a config composes with each of several choices (``adapter=lora,dora``)."""
    chosen = [word for word in words if re.match(r"[\w/@]+=.*,", word) and not word.startswith(("seed=", "resume="))]
    others = [word for word in words if word not in chosen and _fixed_name(word) is not None]
    for word in chosen:
        override = OverridesParser.create().parse_override(word)
        for value in override.sweep_string_iterator() if override.is_sweep_override() else ():
            GlobalHydra.instance().clear()
            compose("train", [*others, f"{override.key_or_group}={value}"])
    GlobalHydra.instance().clear()


def _fixed_name(word: str) -> str | None:
    """The name in an override with a single value; None for several values, or if ``word`` is not an override."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return None
    return None if override.is_sweep_override() else override.key_or_group
