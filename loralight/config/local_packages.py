"""Packages in the user's folders, each imported from exactly its folder, whatever else has its name."""

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoints, entry_points
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

GROUP = "loralight.tasks"  # entry points of installed plugins
VARIABLE = "LORALIGHT_PLUGINS"  # folders, in the environment so that child processes find the same plugins


def folders() -> list[Path]:
    """The folders that the environment names."""
    paths = (Path(path).expanduser().resolve() for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path)
    return list(dict.fromkeys(paths))  # one folder may be named twice, relative and absolute


def usable() -> dict[str, Path]:
    """The folders of `folders` that can be imported, by name."""
    return {folder.name: folder for folder in folders() if not fault_of(folder)}


def fault_of(folder: Path) -> str:
    """Why a folder cannot be imported under its name, or an empty string."""
    if not (folder / "__init__.py").is_file():
        return "the folder has no __init__.py"
    if twin := next((other for other in folders() if other.name == folder.name and other != folder), None):
        return f"{twin} has the same name; give one of the two, or rename one"
    place = taken_by(folder)
    return f"its name is taken by {place}; rename the folder" if place else ""


def taken_by(folder: Path) -> str:
    """The module that has a folder's name already and must keep it; an empty string if there is none.

    An installed plugin need not keep its name, as a folder that the user names may stand in for it, unless the plugin
    has been imported already.
    """
    name = folder.name
    if name in sys.stdlib_module_names:
        return f"Python's own module {name!r}"
    if (module := sys.modules.get(name)) is not None and (place := _place(module)) != folder:
        return f"{place}, which is imported already"
    spec = _found_without_us(name)
    if spec is None or spec.origin is None or _folder_of(spec.origin) == folder:  # no origin: a folder without code
        return ""
    return "" if any(point.value.partition(".")[0] == name for point in installed()) else spec.origin


def installed() -> EntryPoints:
    """The plugins of installed packages; cached until a package is installed, since each has a file to read."""
    folders = {os.path.abspath(folder) for folder in sys.path if os.path.isdir(folder or ".")}
    return _installed(frozenset((folder, os.stat(folder).st_mtime_ns) for folder in folders))


@lru_cache(maxsize=1)
def _installed(_folders: frozenset[tuple[str, int]]) -> EntryPoints:
    return entry_points(group=GROUP)


def install() -> None:
    """Have this process, and those it starts, import the packages from their folders."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for folder in usable().values():
        # multiprocessing passes sys.path on; a process may unpickle a plugin's class before it imports loralight
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))


class _Finder(MetaPathFinder):
    """Finds only the packages of `usable`, before Python looks for their names along its path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # a module within a package, of which a command imports thousands
            return None
        folder = next((folder for folder in folders() if folder.name == fullname), None)
        if folder is None or fault_of(folder):
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def _found_without_us(name: str) -> ModuleSpec | None:
    others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
    return next((spec for finder in others if (spec := finder.find_spec(name, None)) is not None), None)


def _place(module: ModuleType) -> Path | str:
    """The folder of an imported package, the file of a module, or the repr of a module without a file."""
    return _folder_of(module.__file__) if getattr(module, "__file__", None) else repr(module)


def _folder_of(file: str | None) -> Path | str:
    path = Path(file or "").resolve()
    return path.parent if path.name == "__init__.py" else path
