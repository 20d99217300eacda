"""A run's folder: locked before anything is written, never overwritten, resumed only with the same settings."""

import os
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from loralight.artifacts.lock import LOCK, hold
from loralight.config import local_packages
from loralight.config.earlier import VALUES_BEFORE, as_now, said_now
from loralight.errors import InputError
from loralight.plain_yaml import parse_yaml, read_yaml

CONFIG, OVERRIDES, PLUGINS = ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/plugins.yaml"
FAILED = "failed.json"
"""Written for a job of a sweep that ended with an error; ``error`` is its message."""
FORGOTTEN = "forgetting.json"
"""Written by ``loralight evaluate``: ``metrics`` on forgetting, and the ``probe`` that measured them."""
_CHECKPOINTS = "checkpoints/*/[!.]*/manifest.json"
_RESULTS = {"checkpoints": _CHECKPOINTS, "adapter": "adapter", "summary.json": "summary.json"}
_MAY_CHANGE = (
    *("resume", "auto_batch", "logger*", "names*", "page"),  # names: those of files whose content is in the settings
    "forgetting*",  # measured without any effect on training
    *("model.trust_remote_code", "model.allow_pickle"),  # to be allowed anew each time
    *("data.path", "data.train", "data.validation", "data.test", "data.num_workers"),  # the rows are compared
    *("trainer.max_epochs", "trainer.max_steps"),
    # rows go on to any number of processes
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.limit_test_batches", "trainer.num_sanity_val_steps", "trainer.log_every_n_steps", "trainer.profiler*"),
    "trainer.enable_progress_bar",
    *(
        "callbacks.last*",
        "callbacks.recent*",
        "callbacks.*.dirpath",
        "callbacks.*.enable_version_counter",
    ),  # where and how they save
)
"""Settings that may differ in a resumed run: paths, the length of training, the output."""
_MAY_CHANGE_WITHIN_A_STEP = ("trainer.accumulate_grad_batches", "data.batch_size")
"""Settings that may differ as well if ``data.global_batch_size`` says what rows a step has."""
# groups in which a run of an earlier version may lack settings
_GROW_WITH_VERSIONS = {
    "acceleration",
    "adapter",
    "budget",
    "data",
    "init",
    "page",
    "probe",
    "task",
}


def share_name() -> None:
    """Give all processes of torchrun or srun one run folder; each would name the folder by its own clock."""
    if os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none":
        name = os.environ["TORCHELASTIC_RUN_ID"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # without --rdzv-id
        # the agent's process identifies it, but each machine has an agent of its own
        alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
        name = f"torchrun-{os.environ['MASTER_PORT']}-{os.getppid() if alone else os.environ['MASTER_ADDR']}"
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_JOB_ID" in os.environ:
        name = f"slurm-{os.environ['SLURM_JOB_ID']}"
    else:
        return
    os.environ.setdefault("LORALIGHT_RUN_ID", name)


def going_on(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config, with ``resume`` set if ``folder`` holds an unfinished run of exactly these settings.

    So a stopped command that names its folder resumes when it is given again, as schedulers do.
    """
    begun = config["resume"] is None and (folder / CONFIG).is_file() and not (folder / "summary.json").exists()
    if not begun or not any(folder.glob(_CHECKPOINTS)):
        return config
    resumed = _as_begun(folder, config)
    return config if resumed is None else {**resumed, "resume": str(folder)}


def is_finished(folder: Path, config: dict[str, Any]) -> bool:
    """Whether ``folder`` holds a run of exactly these settings that has ended well."""
    return (folder / "summary.json").is_file() and _as_begun(folder, config) is not None


def _as_begun(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The config with what the folder's run found for ``auto`` when it began; None if its settings differ."""
    before, now = read_config(folder), config
    if config["auto_batch"]:
        now = {**config, "auto_batch": False, "data": {**config["data"], "batch_size": before["data"]["batch_size"]}}
    if config.get("task", {}).get("batch_norm") == "auto":
        now = {**now, "task": {**config["task"], "batch_norm": before["task"].get("batch_norm")}}
    differ = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return (
        None if differ - {"resume", "names", "page"} else now
    )  # names: those of files whose content is in the settings


def take(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Lock ``folder`` for this run, until `lock.release`, and write the run's config there.

    Raises:
        InputError: the folder holds another run (``E-OUTPUT``), a run there is still going on (``E-RUNNING``), a
            resumed run has other settings (``E-RESUME``), something in the folder leads out of it (``E-RUN``), or the
            config could not be read back (``E-CONFIG``).
    """
    text = _as_text(config)
    if config["resume"] is not None:
        _check_nothing_leads_out(folder)  # before the lock is written
    if (folder / LOCK).exists():
        hold(folder)  # first, so that the error for a run that is going on says so
    check_free(folder, config)
    hold(folder)
    check_free(folder, config)  # another run may have begun and ended since
    if config["resume"] is not None:
        _set_aside(folder / "metrics.csv")
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    new = folder / f"{CONFIG}.new"
    new.write_text(text, encoding="utf-8")
    os.replace(new, folder / CONFIG)  # at once: a launcher's other processes may read it now
    (folder / OVERRIDES).write_text(yaml.safe_dump(overrides, allow_unicode=True), encoding="utf-8")
    if plugins := [str(path) for path in local_packages.folders()]:
        (folder / PLUGINS).write_text(yaml.safe_dump(plugins, allow_unicode=True), encoding="utf-8")


def words_for_plugins(folder: Path) -> str:
    """Words for a message: the flags that a command without a run's plugins lacks. Nothing is imported from there.

    Args:
        folder: the run's folder, or its adapter's.
    """
    file = next((one for one in (folder / PLUGINS, folder.parent / PLUGINS) if one.is_file()), None)
    try:
        named = [] if file is None else read_yaml(file)
    except InputError:
        return ""
    if not isinstance(named, list) or not named or not all(isinstance(n, str) and n.isprintable() for n in named):
        return ""
    words = " ".join(f"--plugin-dir {shlex.quote(name)}" for name in named)
    return f". It was trained with a plugin of your machine or another: if you know and trust it, add {words[:1000]}"


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run, in plain values; anything else, as in a stranger's folder, is refused.

    Raises:
        InputError: ``folder`` is not a run's, or its config is not a mapping of plain values (``E-RUN``).
    """
    file = folder / CONFIG
    if not os.path.lexists(file):
        raise InputError("E-RUN", f"{folder} is not a run's folder (it has no {CONFIG})")
    config = read_yaml(file)
    if not isinstance(config, dict) or _refers(config):
        raise InputError("E-RUN", f"{file} is no mapping of plain values (${{...}} has no place in it)")
    return as_now(config)


def read_overrides(folder: Path) -> list[str]:
    """The command line of a run. That of a stranger's run must not be run.

    Raises:
        InputError: the overrides in the run's folder are not a list of texts (``E-RUN``).
    """
    file = folder / OVERRIDES
    said = read_yaml(file) if os.path.lexists(file) else []
    if not isinstance(said, list) or not all(isinstance(override, str) for override in said):
        raise InputError("E-RUN", f"{file} is no list of texts")
    return said_now(said)


def _refers(value: Any) -> bool:
    """Whether any text in ``value`` would refer to another setting, or to the environment."""
    if isinstance(value, dict):
        return any(_refers(one) for entry in value.items() for one in entry)
    if isinstance(value, list):
        return any(map(_refers, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _as_text(config: dict[str, Any]) -> str:
    chosen = {group: option for group, option in (config.get("names") or {}).items() if not group.startswith("hydra/")}
    kept = {**config, "names": chosen} if chosen else config
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    try:
        if _refers(parse_yaml(text)):
            raise ValueError("a text with ${ would refer to another setting")
    except ValueError as error:
        raise InputError("E-CONFIG", f"the settings cannot be kept in the run's folder: {error}") from error
    return text


def _check_nothing_leads_out(folder: Path) -> None:
    """Refuse links out of the folder, and pipes: a stranger's folder may have one where the run writes a log."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            place = path.resolve()
            if not place.is_relative_to(root) or not (place.is_dir() or place.is_file() or not place.exists()):
                raise InputError("E-RUN", f"{path} leads out of the run's folder, or is no file; remove it")


def check_free(folder: Path, config: dict[str, Any]) -> None:
    """Raise ``E-OUTPUT`` if ``folder`` holds another run, or ``E-RESUME`` if a resumed run has other settings."""
    if config["resume"] is not None:
        _check_same(folder, config)
    elif found := [name for name, files in _RESULTS.items() if any(folder.glob(files))]:
        raise InputError(
            "E-OUTPUT",
            f"{folder} holds another run ({', '.join(found)}), and nothing is overwritten. Go on with it by "
            f"{shlex.quote(f'resume={folder}')}, or choose another folder with hydra.run.dir=",
        )


def _check_same(folder: Path, config: dict[str, Any]) -> None:
    """Refuse changes of settings that affect results: they would be ignored, break on loading, or mix two runs."""
    now = dict(flat(config))
    newer = {
        name: VALUES_BEFORE.get(name, value)
        for name, value in now.items()
        if name.partition(".")[0] in _GROW_WITH_VERSIONS
    }
    before = newer | dict(flat(read_config(folder)))
    free = _MAY_CHANGE if now.get("data.global_batch_size") is None else (*_MAY_CHANGE, *_MAY_CHANGE_WITHIN_A_STEP)
    changed = [
        f"{name}: {before.get(name)!r}, now {now.get(name)!r}"
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name) and not any(fnmatchcase(name, one) for one in free)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            "E-RESUME",
            f"{folder} was begun with other settings ({'; '.join(changed[:3])}{more}); resume it with those, or start "
            f"a new run, which may begin at its adapter ({shlex.quote(f'init={folder}')})",
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its full dotted name."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set_aside(file: Path) -> None:
    """Rename a file that a resumed run will write anew: ``metrics.csv`` becomes ``metrics.1.csv``, and so on."""
    if file.exists():
        number = 1 + len(list(file.parent.glob(f"{file.stem}.*{file.suffix}")))
        file.rename(file.with_name(f"{file.stem}.{number}{file.suffix}"))
