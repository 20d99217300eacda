"""Plugins: those in loralight, those of installed packages, and those in the user's folders."""

import ast
import os
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

from loralight.config import local_packages
from loralight.config.local_packages import VARIABLE
from loralight.errors import InputError

OWN = "loralight"  # the origin of plugins in loralight itself
LIBRARIES = ("torch", "lightning", "torchmetrics", "transformers", "timm", "datasets")
"""Libraries whose classes a config may name, in addition to loralight's and a plugin's."""


@dataclass(frozen=True)
class Plugin:
    """A package with a task, an adapter method, or both.

    Its ``conf`` folder joins Hydra's search path without the package being imported.

    Args:
        name: the name of the entry point or folder; by custom also that of its task or method.
        package: its import name.
        origin: where it was found, for messages.
        folder: its folder; None if it cannot be found.
        fault: why it cannot be used, or an empty string.
    """

    name: str
    package: str
    origin: str
    folder: Path | None
    fault: str = ""

    @property
    def conf(self) -> Path:
        assert self.folder is not None
        return self.folder / "conf"

    def tasks(self) -> list[Path]:
        """The files that define its tasks; a plugin for an adapter method may have none."""
        return sorted(self.conf.glob("task/*.yaml")) if self.folder and not self.fault else []

    def summary(self) -> str:
        """The first line of the package's docstring, read without running it."""
        if self.folder is None:
            return ""
        return (ast.get_docstring(_source(self.folder)) or "").partition("\n")[0]


def discover() -> list[Plugin]:
    """All plugins, broken plugins with their fault. If two plugins provide the same file, the second is at fault.

    A folder that the user names replaces an installed plugin whose package has the same name.
    """
    local_packages.install()  # so that `_target_: my_task.module.MyTask` resolves
    provided = dict.fromkeys(_yaml_files(_core_conf()), "loralight itself")
    plugins: list[Plugin] = []
    for plugin in (*_in_tree(), *_installed(local_packages.usable()), *_local()):
        checked = _check(plugin, provided, plugins)
        if not checked.fault:
            provided |= dict.fromkeys(_yaml_files(checked.conf), checked.origin)
        plugins.append(checked)
    return plugins


def conf_folders() -> list[Path]:
    """The ``conf`` folders of loralight and of every working plugin."""
    return [_core_conf(), *(plugin.conf for plugin in discover() if not plugin.fault)]


def add_folder(folder: str) -> None:
    """Have `discover` include a local plugin folder, in this process and its child processes."""
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    path = str(Path(folder).expanduser().resolve())
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, path]))


def check_folders() -> None:
    """Check that plugins in the user's folders are imported from these folders.

    Raises:
        InputError: a folder that `add_folder` was given cannot be used (``E-PLUGIN``).
    """
    local = local_packages.folders()
    if broken := next((plugin for plugin in discover() if plugin.fault and plugin.folder in local), None):
        raise InputError("E-PLUGIN", f"the plugin in {broken.folder} cannot be used: {broken.fault}")


def use_folder(folder: Path) -> None:
    """Have tests use the plugin in ``folder``, not an installed copy.

    Raises:
        InputError: the folder cannot be used (``E-PLUGIN``).
    """
    add_folder(str(folder))
    check_folders()
    # pytest's worker processes unpickle a plugin's class before they import us, and would find an installed copy
    sys.path.insert(0, str(folder.resolve().parent))


def task_file(name: str) -> Path:
    """The file that defines the task ``name``.

    Raises:
        InputError: no plugin defines the task (``E-TASK``).
    """
    plugins = discover()
    files = {file.stem: file for plugin in plugins for file in plugin.tasks()}
    if name not in files:
        faults = "".join(f"; {plugin.name} is broken: {plugin.fault}" for plugin in plugins if plugin.fault)
        raise InputError("E-TASK", f"there is no task {name!r}; installed are {', '.join(sorted(files))}{faults}")
    return files[name]


def _core_conf() -> Path:
    spec = find_spec("loralight.conf")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _in_tree() -> Iterable[Plugin]:
    spec = find_spec("loralight.tasks")
    assert spec is not None and spec.submodule_search_locations is not None
    for root in spec.submodule_search_locations:
        for folder in sorted(Path(root).iterdir()):
            if (folder / "__init__.py").is_file():
                yield Plugin(folder.name, f"loralight.tasks.{folder.name}", OWN, folder)


def _installed(stood_in_for: Container[str]) -> Iterable[Plugin]:
    for point in local_packages.installed():
        if point.value.partition(".")[0] in stood_in_for:
            continue
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
        fault, folder = "", None
        try:
            spec = find_spec(point.value)
            if spec is None or spec.submodule_search_locations is None:
                fault = f"{point.value!r} is not a package that can be imported"
            else:
                folder = Path(spec.submodule_search_locations[0])
        except Exception as error:  # a parent package is imported here, and may raise anything
            fault = f"importing {point.value!r} raises {type(error).__name__}: {error}"
        yield Plugin(point.name, point.value, origin, folder, fault)


def _local() -> Iterable[Plugin]:
    for folder in local_packages.folders():
        yield Plugin(folder.name, folder.name, str(folder), folder, local_packages.fault_of(folder))


def _source(folder: Path) -> ast.Module:
    return ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))


def _files(conf: Path) -> Iterable[Path]:
    return sorted(conf.rglob("*.yaml"))


def _yaml_files(conf: Path) -> Iterable[str]:
    return (file.relative_to(conf).as_posix() for file in _files(conf))


@cache
def _fault_of_yaml(file: Path, _changed: int) -> str:
    """Why a file cannot be parsed as YAML, or an empty string."""
    try:
        for _ in yaml.parse(file.read_text(encoding="utf-8"), yaml.SafeLoader):
            pass
    except (OSError, ValueError) as error:
        return f"{file} cannot be read: {error}"
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        return f"{file}{'' if mark is None else f', line {mark.line + 1}'}: {problem}"
    return ""


def _check(plugin: Plugin, provided: dict[str, str], others: list[Plugin]) -> Plugin:
    """The plugin with its fault. A second file of one name is a fault: Hydra would silently take the first."""
    fault = plugin.fault
    if not fault and plugin.folder is not None:
        try:
            _source(plugin.folder)
        except (OSError, ValueError, SyntaxError) as error:
            fault = f"its __init__.py cannot be read: {error}"
    if not fault and not plugin.conf.is_dir():
        fault = f"{plugin.folder} has no conf folder"
    if not fault and plugin.origin != OWN:
        fault = next(filter(None, (_fault_of_yaml(file, file.stat().st_mtime_ns) for file in _files(plugin.conf))), "")
    if not fault and (twin := next((other for other in others if other.name == plugin.name), None)):
        fault = f"its name is taken by the plugin from {twin.origin}"
    if not fault and (clash := next((path for path in _yaml_files(plugin.conf) if path in provided), None)):
        fault = f"conf/{clash} is already provided by {provided[clash]}"
    return Plugin(plugin.name, plugin.package, plugin.origin, plugin.folder, fault)
