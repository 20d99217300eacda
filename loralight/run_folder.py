"""A run's folder: taken before anything is written, never over another run, and resumed only as it was begun."""

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from loralight.errors import InputError
from loralight.plain_yaml import parse_yaml, read_yaml

CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
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


def take(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Make ``folder`` the run's, and keep its config there.

    Raises:
        InputError: another run is in it (``E-OUTPUT``), a resumed run would be another one (``E-RESUME``), what lies
            in it leads elsewhere (``E-RUN``), or the config could not be read again (``E-CONFIG``).
    """
    text = _as_text(config)
    if config["resume"] is None:
        if found := [name for name in ("checkpoints", "adapter", "summary.json") if (folder / name).exists()]:
            raise InputError(
                "E-OUTPUT",
                f"{folder} holds another run ({', '.join(found)}), and nothing is overwritten. Go on with it by "
                f"{shlex.quote(f'resume={folder}')}, or choose another folder with hydra.run.dir=",
            )
    else:
        _check_nothing_leads_out(folder)
        _check_same(folder, config)
        _set_aside(folder / "metrics.csv")
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / OVERRIDES).write_text(yaml.safe_dump(overrides, allow_unicode=True), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The config that a run was made with, in plain values: a stranger's folder, too, says nothing else.

    Raises:
        InputError: ``folder`` is no run's, or its config is something else (``E-RUN``).
    """
    file = folder / CONFIG
    if not os.path.lexists(file):
        raise InputError("E-RUN", f"{folder} is not a run's folder (it has no {CONFIG})")
    config = read_yaml(file)
    if not isinstance(config, dict) or _refers(config):
        raise InputError("E-RUN", f"{file} is no mapping of plain values (${{...}} has no place in it)")
    return config


def read_overrides(folder: Path) -> list[str]:
    """What the command line of a run said: of a stranger's, words to look at and not to run.

    Raises:
        InputError: they are something else (``E-RUN``).
    """
    file = folder / OVERRIDES
    said = read_yaml(file) if os.path.lexists(file) else []
    if not isinstance(said, list) or not all(isinstance(override, str) for override in said):
        raise InputError("E-RUN", f"{file} is no list of texts")
    return said


def _refers(value: Any) -> bool:
    """Whether a text somewhere in it would refer to another setting, or to the environment."""
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
    """A run writes into its folder; a stranger's may have put a link where a log goes, or a pipe."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            place = path.resolve()
            if not place.is_relative_to(root) or not (place.is_dir() or place.is_file() or not place.exists()):
                raise InputError("E-RUN", f"{path} leads out of the run's folder, or is no file; remove it")


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
