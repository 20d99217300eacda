"""A run's settings, read from its folder: names of installed choices, and plain values of known keys.

The folder may be a stranger's, so its words never reach Hydra as they are. Plain values are written as new overrides.
Only the user and the installed choices may name code, a place to write, or the environment.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loralight.artifacts.run_folder import read_config, read_overrides, words_for_plugins
from loralight.config.composition import as_override, composed, plain
from loralight.config.earlier import VALUES_BEFORE
from loralight.config.overrides import folder_of, quoted
from loralight.config.plugins import conf_folders
from loralight.errors import InputError, did_you_mean

_MAPPING = re.compile(r"adapter\.\w+=\{")
_CHOICE = re.compile(r"(\+?)(\w+(?:/\w+)*)=([\w.-]+(?:/[\w.-]+)*|\[[\w.,/ -]+\])")
_GONE = re.compile(r"~([A-Za-z_]\w*(?:\.\w+)*)(?:=.*)?")
_OPTIONAL = ("callbacks", "logger", "scheduler")
_ONLY_TO_TRAIN = (*_OPTIONAL, "optimizer", "compile", "auto_batch", "budget", "page", "forgetting")
_ALONE = {"trainer.devices": 1, "trainer.num_nodes": "auto", "trainer.strategy": "auto"}
"""How a run is measured unless the user asks for several processes, in however many it was trained."""
_FROM_HERE = re.compile(r"\$\{(?:oc\.env|hydra|now)[:.][^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_NAMES_OF_METRICS = ("monitor", "mode")
_ALLOWED_ANEW = ("model.trust_remote_code", "model.allow_pickle")  # the user must allow them each time


def with_those_of_a_run(verb: str, overrides: list[str], conf: Sequence[str] = ()) -> list[str]:
    """The overrides, preceded by the settings of the run in ``resume=DIR`` or ``run=DIR``, so none must be retyped."""
    # Hydra takes each key of a mapping as a setting, but an adapter's keys are names of layers
    overrides = [f"++{o}" if _MAPPING.match(o) else o for o in overrides]
    key = {"train": "resume", "evaluate": "run", "merge": "run", "ranks": "run"}.get(verb)
    given = [o for o in overrides if o.partition("=")[0] == key and o.partition("=")[2] not in ("", "null")]
    if key is None or not given:
        return overrides
    folder = folder_of(given[-1])
    overrides = [quoted(f"{key}={folder}") if o in given else o for o in overrides]
    if verb == "evaluate" and (folder / "adapter_config.json").exists() and not (folder / ".hydra").exists():
        return overrides  # a PEFT adapter; the user gives all settings
    if not os.path.lexists(folder / ".hydra" / "config.yaml"):
        raise InputError("E-RUN", f"{key}={folder}: not a run's folder (it has no .hydra/config.yaml)")
    saved = RunSettings(folder, overrides, conf=conf, trains=verb == "train").overrides()
    if verb == "train":
        saved.append(quoted(f"hydra.run.dir={folder}"))
    return [*saved, *overrides]


class RunSettings:
    """The settings of a run as overrides.

    Args:
        folder: the run's folder.
        given: the user's own overrides, which take precedence: the run's values for these settings are ignored.
        conf: folders of configs in addition to those of plugins.
        trains: whether the run is resumed; else only the settings needed to measure are taken.
    """

    def __init__(self, folder: Path, given: Sequence[str], *, conf: Sequence[str] = (), trains: bool) -> None:
        self._folder, self._trains = folder, trains
        self._folders = [*conf_folders(), *map(Path, conf)]
        searched = as_override("hydra.searchpath", [f"file://{Path(path).absolute()}" for path in conf])
        self._searched = [searched.lstrip("+")]  # after "++" Hydra would look there too late
        self._saved, said = read_config(folder), read_overrides(folder)
        self._named = {o.lstrip("+~").partition("=")[0] for o in given if o[0] == "~" or not self._is_choice(o)}
        self._chosen_anew = {o.lstrip("+~").partition("=")[0] for o in given}
        self._choices = self._find_choices(said)
        self._gone = self._find_gone(said)

    def overrides(self) -> list[str]:
        """The overrides that turn the installed configs into the run's config.

        Raises:
            InputError: the folder names a choice or setting that is not installed or not known (``E-RUN``), or code
                that its choices do not name (``E-TARGET``).
        """
        choices = [f"{plus}{group}={option}" for group, (plus, option) in self._choices.items()]
        gone = [f"~{name}" for name in self._gone]
        base = composed("train", [*self._searched, *choices, *gone], self._folder)
        saved = {key: value for key, value in self._saved.items() if key not in ("names", "resume")}
        changed = [as_override(name, value) for name, value in self._differences(saved, base, "")]
        changed += [as_override(name, value) for name, value in self._newer(base)]
        if not self._trains and "trainer" not in self._chosen_anew:
            # a GPU of training may not be here
            on_gpu = saved.get("trainer", base["trainer"]).get("accelerator") in ("gpu", "cuda")
            alone = _ALONE | ({"trainer.accelerator": "auto"} if on_gpu else {})
            changed += [as_override(name, value) for name, value in alone.items() if not self._is_named(name)]
        kept = [o for o in (*choices, *gone) if o.lstrip("+~").partition("=")[0] not in self._chosen_anew]
        return [*kept, *changed]

    def _is_choice(self, override: str) -> bool:
        found = _CHOICE.fullmatch(override)
        return found is not None and self._is_group(found[2])

    def _is_group(self, name: str) -> bool:
        return any((folder / name).is_dir() for folder in self._folders)

    def _wanted(self, name: str, value: Any = None) -> bool:
        """Whether the command needs a part; measuring does not need a profiler, for example."""
        inside_trainer = name.startswith("trainer.") and isinstance(value, dict)
        return self._trains or not (name in _ONLY_TO_TRAIN or name in _ALONE or inside_trainer)

    def _find_choices(self, said: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The option of each group: as the run recorded it, or as its command line said."""
        choices = {m[2]: (m[1], m[3]) for o in said if self._is_choice(o) and (m := _CHOICE.fullmatch(o))}
        recorded = self._saved.get("names")
        for group, option in recorded.items() if isinstance(recorded, dict) else ():
            if option is not None and "@" not in str(group):
                choices[str(group)] = choices.get(str(group), ("", ""))[0], str(option)
        choices = {group: choice for group, choice in choices.items() if self._wanted(group)}
        for group, (_, options) in choices.items():
            for option in options.strip("[]").split(","):
                self._check_installed(group, option.strip())
        return choices

    def _check_installed(self, group: str, option: str) -> None:
        sound = re.fullmatch(r"\w+(?:/\w+)*", group) and re.fullmatch(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", option)
        if not sound or not any((folder / group / f"{option}.yaml").is_file() for folder in self._folders):
            raise InputError(
                "E-RUN",
                f"{self._folder} was made with {group}={option}, which is not installed here: install its plugin, or "
                f"name its folder (--plugin-dir, --config-dir){words_for_plugins(self._folder)}",
            )

    def _find_gone(self, said: Iterable[str]) -> list[str]:
        """Names that the run removed by ``~``: a whole optional part, or something inside a part."""
        names = [found[1] for o in said if (found := _GONE.fullmatch(o))]
        inside = [
            name for name in names if name in _OPTIONAL or ("." in name and self._is_group(name.partition(".")[0]))
        ]
        return [name for name in inside if self._wanted(name.partition(".")[0])]

    def _is_named(self, name: str) -> bool:
        return any(name == given or name.startswith(f"{given}.") for given in self._named)

    def _differences(self, saved: Mapping[Any, Any], base: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
        """The saved values that differ from ``base``, by their dotted names."""
        for key, value in saved.items():
            name = f"{where}{key}"
            if self._is_named(name) or name in _ALLOWED_ANEW or not self._wanted(name, value):
                continue
            self._check_known(name, key, value, base)
            part = self._part(name, base, key)
            if part is not None and isinstance(value, dict):
                yield from self._differences(value, part, f"{name}.")
            elif part is not None and (value is not None or not where):
                raise self._refused(name, "has settings of its own")
            elif part is not None or key not in base or not self._is_said(name, value, base[key]):
                yield name, self._checked(name, value)

    def _newer(self, base: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Settings that did not exist when the run was made, with the values by which it computed."""
        for name, value in VALUES_BEFORE.items():
            part, _, key = name.partition(".")
            saved, installed = (node[part] if isinstance(node.get(part), dict) else {} for node in (self._saved, base))
            if key in installed.keys() - saved.keys() and not self._is_named(name):
                yield name, value

    def _check_known(self, name: str, key: Any, value: Any, base: Mapping[str, Any]) -> None:
        known = key in base or "_target_" in base or self._is_named(f"{name}._target_")
        if known and re.fullmatch(r"[A-Za-z_][\w-]*", str(key)):
            return
        if found := _hydras({name: value}):
            raise self._target(*found)
        raise self._refused(name, "is no setting", did_you_mean(str(key), base))

    def _part(self, name: str, base: Mapping[str, Any], key: Any) -> Mapping[str, Any] | None:
        """A node with settings of its own; None for a single value, such as an argument that is a mapping."""
        if self._is_named(f"{name}._target_"):
            return {"_target_": "the user's"} | (base.get(key) or {})
        node = base.get(key)
        return node if isinstance(node, dict) and ("_target_" in node or "_target_" not in base) else None

    def _is_said(self, name: str, value: Any, given: Any) -> bool:
        """Whether ``given``, or the value that it refers to in the run's own settings, equals ``value``."""
        if _FROM_HERE.search(str(given)):  # depends on this machine, or on this command
            literal = ".*".join(map(re.escape, _FROM_HERE.split(str(given))))
            if not name.startswith("data.") and not re.fullmatch(literal, str(value)):
                raise self._refused(name, "says where something is written")
            return True
        if "${" in str(given):
            here = OmegaConf.create(dict(self._saved))
            try:
                OmegaConf.update(here, name, given, merge=False)
                given = plain(OmegaConf.create({"given": OmegaConf.select(here, name)}))["given"]
            except (OmegaConfBaseException, InputError):
                return False
        return repr(given) == repr(value)

    def _checked(self, name: str, value: Any) -> Any:
        """``value``, after checking that it may be taken from the folder."""
        before, _, last = name.rpartition(".")
        if found := _hydras({last: value}):
            raise self._target(f"{before}.{found[0]}", found[1])
        builds = name.split(".")[0] in ("callbacks", "logger") or (name.startswith("trainer.") and name.count(".") > 1)
        if builds and last not in _NAMES_OF_METRICS and any(isinstance(one, str) for one in _values(value)):
            raise self._refused(name, "may say where something is written")
        return value

    def _target(self, name: str, value: Any) -> InputError:
        return InputError(
            "E-TARGET",
            f"{self._folder} was made with {name}={str(value)[:100]!r}, which no installed choice names. What a folder "
            f"names is not run: if you want it, say it again in the command, as ++{name}=...",
        )

    def _refused(self, name: str, why: str, hint: str = "") -> InputError:
        return InputError(
            "E-RUN",
            f"{self._folder}: {name[:100]!r} {why}. A folder's word is not taken for it: if you want it, say it again "
            f"in the command.{hint}",
        )


def _hydras(mapping: Mapping[Any, Any]) -> tuple[str, Any] | None:
    """The first key such as ``_target_``, at any depth, by its dotted name, and its value."""
    for key, value in mapping.items():
        if str(key).startswith("_") and str(key).endswith("_"):
            return str(key), value
        inner = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        if found := _hydras(inner):
            return f"{key}.{found[0]}", found[1]
    return None


def _values(value: Any) -> Iterator[Any]:
    """The value, or all that a list or mapping holds."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        yield value
    for one in inner or ():
        yield from _values(one)
