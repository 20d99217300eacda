"""A run's folder: taken before anything is written, never over another run, and resumed only as it was begun."""

import os
from pathlib import Path
from typing import Any

import yaml

from loralight.errors import InputError
from loralight.lock import LOCK, hold

CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
_CHECKPOINTS = "checkpoints/*/[!.]*/manifest.json"
_RESULTS = {"checkpoints": _CHECKPOINTS, "adapter": "adapter", "summary.json": "summary.json"}
_MAY_CHANGE = {"data": {"path", "train", "validation", "test", "eval_batch_size", "num_workers"}}


def share_name() -> None:
    """Have all processes that torchrun or srun has started write into one folder, though each names it by its clock."""
    if os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none":
        name = os.environ["TORCHELASTIC_RUN_ID"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # a static rendezvous has no name: the agent's process tells it apart
        name = f"torchrun-{os.environ['MASTER_PORT']}-{os.getppid()}"
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        name = f"slurm-{os.environ['SLURM_JOB_ID']}"
    else:
        return
    os.environ.setdefault("LORALIGHT_RUN_ID", name)


def going_on(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config, to be resumed where ``folder`` holds an unfinished run of these very settings.

    So a command that was stopped goes on when it is given again, as schedulers do, if it names its folder.
    """
    begun = config["resume"] is None and (folder / CONFIG).is_file() and not (folder / "summary.json").exists()
    if not begun or not any(folder.glob(_CHECKPOINTS)):
        return config
    before, resumed = read_config(folder), {**config, "resume": str(folder)}
    if config["auto_batch"]:  # was chosen when the run began
        chosen = {**config["data"], "batch_size": before["data"]["batch_size"]}
        resumed |= {"auto_batch": False, "data": chosen}
    differ = [name for name in {*before, *resumed} if before.get(name) != resumed.get(name)]
    return config if set(differ) - {"resume", "names"} else resumed  # names of files, of which all is in the settings


def take(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Make ``folder`` the run's, and keep its config there; no other process may, until `lock.release`.

    Raises:
        InputError: another run is in it (``E-OUTPUT``) and going on (``E-RUNNING``), or a resumed run would be another
            one (``E-RESUME``).
    """
    if (folder / LOCK).exists():
        hold(folder)  # a run that is going on is told of as such
    _check_free(folder, config)
    hold(folder)
    _check_free(folder, config)  # another may have come and ended since
    if config["resume"] is not None:
        _set_aside(folder / "metrics.csv")
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / OVERRIDES).write_text(yaml.safe_dump(overrides, allow_unicode=True), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The config that a run was made with, in plain values.

    Raises:
        InputError: ``folder`` is no run's (``E-RUN``).
    """
    file = folder / CONFIG
    if not file.is_file():
        raise InputError("E-RUN", f"{folder} is not a run's folder (it has no {CONFIG})")
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def _check_free(folder: Path, config: dict[str, Any]) -> None:
    if config["resume"] is not None:
        _check_same(folder, config)
    elif found := [name for name, files in _RESULTS.items() if any(folder.glob(files))]:
        raise InputError(
            "E-OUTPUT",
            f"{folder} holds another run ({', '.join(found)}), and nothing is overwritten. Go on with it by "
            f"resume={folder}, or choose another folder with hydra.run.dir=",
        )


def _check_same(folder: Path, config: dict[str, Any]) -> None:
    """What learns, and from what, must be as it was: another rate or rank would be ignored, or break on loading."""
    before = read_config(folder)
    for part in ("seed", "task", "adapter", "optimizer", "data"):
        old, new = before.get(part), config[part]
        if isinstance(old, dict) and isinstance(new, dict):
            free = _MAY_CHANGE.get(part, set())
            changed = [
                f"{part}.{key}: {old.get(key)!r}, now {new.get(key)!r}"
                for key in new
                if key not in free and old.get(key) != new.get(key)
            ]
        else:
            changed = [] if old == new else [f"{part}: {old!r}, now {new!r}"]
        if changed:
            raise InputError(
                "E-RESUME",
                f"{folder} was begun with other settings ({'; '.join(changed[:3])}); resume it with those, or start a "
                "new run",
            )


def _set_aside(file: Path) -> None:
    """Keep a file that a resumed run writes anew: ``metrics.csv`` becomes ``metrics.1.csv``, and so on."""
    if file.exists():
        number = 1 + len(list(file.parent.glob(f"{file.stem}.*{file.suffix}")))
        file.rename(file.with_name(f"{file.stem}.{number}{file.suffix}"))
