"""Checks a config against the constructors that it names; their signatures are the schema."""

import inspect
import logging
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from hydra.utils import get_object

from loralight.annotations import mismatch
from loralight.config.plugins import LIBRARIES, conf_folders
from loralight.errors import InputError, did_you_mean

_OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def find_target(path: str, where: str, trusted: Sequence[str]) -> Any:
    """The class or function that ``_target_: path`` names.

    Raises:
        InputError: the target is outside the trusted packages, even if one of them imports it (``torch.os.system``), is
            a function that is not meant as a setting (``torch.load``), or cannot be imported (``E-TARGET``).
    """
    if not _is_in(path, trusted):
        raise InputError(
            "E-TARGET",
            f"{where}._target_: {path!r} is not in {', '.join(trusted)}; a config may only name what is in these "
            "packages and in task plugins (--plugin-dir)",
        )
    logging.getLogger("hydra.utils").disabled = True  # it logs three lines on what is raised here as one message
    try:
        target = get_object(path)
    except (Exception, SystemExit) as error:  # importing a plugin may raise anything
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise InputError(
            "E-TARGET", f"{where}._target_: cannot import {path!r}: {type(root).__name__}: {root}{_place(root, path)}"
        ) from error
    finally:
        logging.getLogger("hydra.utils").disabled = False
    if not callable(target) or not _is_in(getattr(target, "__module__", None), trusted):
        raise InputError("E-TARGET", f"{where}._target_: {path!r} is not a class or function of that package itself")
    if not (inspect.isclass(target) or _is_meant(target, path, trusted)):
        raise InputError(
            "E-TARGET",
            f"{where}._target_: {path!r} is a function of a library. Name a class, a function of loralight or "
            "of a plugin, or one that a file in a plugin's conf names",
        )
    return target


def _place(error: BaseException, path: str) -> str:
    """The place in a package's own files at which an import failed, for a message."""
    package = f"{os.sep}{path.partition('.')[0]}{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _is_meant(target: Any, path: str, trusted: Sequence[str]) -> bool:
    """Whether a config may name a function: libraries have many that run files or exit the process."""
    own = [package for package in trusted if package not in LIBRARIES]
    if inspect.isfunction(target) and _is_in(target.__module__, own):
        return True
    files = (file for folder in conf_folders() for file in folder.rglob("*.yaml"))
    named = re.compile(rf"_target_:\s*['\"]?{re.escape(path)}(?![\w.])")
    return any(named.search(file.read_text(encoding="utf-8")) for file in files)


def _is_in(path: Any, packages: Sequence[str]) -> bool:
    return isinstance(path, str) and path.partition(".")[0] in packages


def check(config: Any, where: str, trusted: Sequence[str], *, complete: bool = True, base: type | None = None) -> None:
    """Check a config node with a ``_target_``, and the nodes inside it.

    Args:
        config: the node as plain values.
        where: its dotted name in the config.
        trusted: packages whose classes may be named.
        complete: whether all required arguments must be there, since nothing is added later.
        base: the class whose arguments `conf/train.yaml` names; the target must take all of them.

    Raises:
        InputError: there are unknown, missing or wrongly typed arguments (``E-CONFIG``), the target is not allowed, see
            `find_target` (``E-TARGET``), or it does not take all arguments of ``base`` (``E-PLUGIN``).
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise InputError("E-CONFIG", f"{where}: {config!r} has no _target_, the class to build")
    target = find_target(config["_target_"], where, trusted)
    parameters = _parameters(target)
    hints = _hints(target)
    if base is not None and parameters is not None:
        _check_takes_all_of(base, parameters, f"{where}._target_: {target.__qualname__}")
    given = {key: value for key, value in config.items() if key not in _OF_HYDRA}
    for key, value in given.items():
        if parameters is not None and key not in parameters:
            hint = did_you_mean(key, parameters)
            raise InputError(
                "E-CONFIG",
                f"{where}: {target.__qualname__} takes no argument {key!r}.{hint} It takes: {', '.join(parameters)}",
            )
        if isinstance(value, Mapping) and "_target_" in value:
            check(value, f"{where}.{key}", trusted)
        elif key in hints and (expected := mismatch(value, hints[key])):
            raise InputError("E-CONFIG", f"{where}.{key}: {value!r} is not {expected}")
    if parameters is not None and complete and not config.get("_partial_"):
        required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        if missing := [name for name in required if name not in given]:
            raise InputError("E-CONFIG", f"{where}: {target.__qualname__} needs {', '.join(missing)}")


def _check_takes_all_of(base: type, parameters: Mapping[str, inspect.Parameter], target: str) -> None:
    if lacking := [name for name in _parameters(base) or () if name not in parameters]:
        raise InputError(
            "E-PLUGIN",
            f"{target} does not take {', '.join(lacking)}, which users can set for each {base.__name__}: have its "
            f"constructor take **arguments and hand them on to that of {base.__name__}",
        )


def check_keywords(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Check keyword arguments from the command line against those of a function that have a default.

    Raises:
        InputError: there is no such argument, or its value has another type (``E-CONFIG``).
    """
    parameters = inspect.signature(function).parameters.values()
    by_keyword = [one for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    known = [one.name for one in by_keyword if one.kind is one.KEYWORD_ONLY or one.default is not one.empty]
    hints = get_type_hints(function)
    for key, value in given.items():
        if key not in known:
            takes = f"It takes: {', '.join(known)}" if known else "It takes none"
            raise InputError("E-CONFIG", f"{where}.{key}: there is no such option.{did_you_mean(key, known)} {takes}")
        if key in hints and (expected := mismatch(value, hints[key])):
            raise InputError("E-CONFIG", f"{where}.{key}: {value!r} is not {expected}")


def _parameters(target: Any) -> dict[str, inspect.Parameter] | None:
    """The arguments of a class, with its parents' if it passes ``**arguments`` on; None if it takes any arguments."""
    found: dict[str, inspect.Parameter] = {}
    for initialiser in _initialisers(target):
        parameters = list(inspect.signature(initialiser).parameters.values())
        if inspect.isclass(target):
            parameters = parameters[1:]  # self
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return found
    return None


def _initialisers(target: Any) -> list[Any]:
    """The functions that take a target's arguments: a class's and its parents' ``__init__``, or the function itself."""
    if not inspect.isclass(target):
        return [target]
    return [vars(owner)["__init__"] for owner in target.__mro__ if "__init__" in vars(owner)]


def _hints(target: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for initialiser in reversed(_initialisers(target)):
        try:
            hints |= get_type_hints(initialiser)
        except (NameError, TypeError):  # annotations that only a type checker can read
            continue
    return hints
