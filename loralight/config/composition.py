"""Everything that depends on Hydra's own interfaces: search path, versions, messages about overrides."""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from loralight.config.plugins import LIBRARIES, check_folders, discover
from loralight.disk import REFUSED
from loralight.errors import InputError, did_you_mean

_NO_TEXTS = ("null", "true", "false", "nan", "inf")  # Hydra reads these as text only in quotes
_TENSOR_PARALLEL = (
    "tensor parallelism is not offered. Each kind of adapted layer would need a plan of how its factors are cut, each "
    "model one of its own (transformers has none for BERT), and every block would wait four times for activations of "
    "all rows. trainer=fsdp holds a part of each weight on each device too, for any adapter and model; trainer=ddp is "
    "faster for a base that fits one device (docs/scaling.md)"
)
_NOT_OFFERED = {("trainer", name): _TENSOR_PARALLEL for name in ("tp", "tensor_parallel")}
_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
"""The extras that bring launchers."""
CONFIG_PATH = "pkg://loralight.conf"
TRUSTED = ("loralight", *LIBRARIES)


class _PluginConfs(SearchPathPlugin):
    """Puts the ``conf`` folder of every sound plugin on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in discover():
            if not plugin.fault:
                search_path.append(provider=f"task {plugin.name}", path=f"file://{plugin.conf}")


def trusted_packages() -> list[str]:
    """The packages whose classes a config may name."""
    plugins = (plugin.package.partition(".")[0] for plugin in discover() if not plugin.fault)
    return list(dict.fromkeys([*TRUSTED, *plugins]))


def run_hydra(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``job`` as the Hydra application ``config_name`` with the arguments in ``sys.argv``.

    Raises:
        InputError: the user has named a plugin's folder that cannot be used (``E-PLUGIN``).
    """
    check_folders()
    Plugins.instance().register(_PluginConfs)
    arguments: dict[str, Any] = {"config_path": CONFIG_PATH, "config_name": config_name}
    if "execution_whitelist" in inspect.signature(hydra.main).parameters:  # Hydra 1.4, without version_base
        arguments["execution_whitelist"] = trusted_packages()
    else:
        arguments["version_base"] = "1.3"
    hydra.main(**arguments)(job)()


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The config that a command line would give, outside of a Hydra application."""
    return _without_hydra(_composed(config_name, overrides))


def compose_for_help(
    config_name: str, overrides: list[str], folders: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The config of a command line with unresolved references, its choices, and the head of its help page.

    Args:
        config_name: name of the verb's config.
        overrides: from the command line.
        folders: the folders that ``--config-dir`` names.
    """
    GlobalHydra.instance().clear()
    searched = [f"hydra.searchpath=[{','.join(_as_word(f'file://{Path(one).absolute()}') for one in folders)}]"]
    config = _composed(config_name, [*(searched if folders else []), *overrides])
    choices, header = config.hydra.runtime.choices, str(config.hydra.help.header)
    chosen = {group: choice for group, choice in choices.items() if not group.startswith("hydra/")}
    container = OmegaConf.to_container(_without_hydra(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}, chosen, header


def _composed(config_name: str, overrides: list[str]) -> DictConfig:
    Plugins.instance().register(_PluginConfs)
    arguments = {} if "execution_whitelist" in inspect.signature(hydra.main).parameters else {"version_base": "1.3"}
    with hydra.initialize_config_module("loralight.conf", **arguments):
        return hydra.compose(config_name, overrides, return_hydra_config=True)


def _without_hydra(config: DictConfig) -> DictConfig:
    choices = config.hydra.runtime.choices
    with open_dict(config):
        del config.hydra
        if "names" in config:  # refers to Hydra's own config, which only Hydra's applications know
            config.names = choices
    return config


def composed(config_name: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """The config that a run's ``overrides`` give, with unresolved references.

    Raises:
        InputError: the overrides do not give a config (``E-OVERRIDE``).
    """
    GlobalHydra.instance().clear()
    try:
        config = _composed(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError("E-OVERRIDE", f"{folder}: {_told(error, config_name, overrides)}") from error
    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def as_override(name: str, value: Any) -> str:
    """The override by which Hydra sets a name to a plain value, whatever characters its texts have.

    Raises:
        InputError: no override of Hydra can express the value (``E-OVERRIDE``).
    """
    override = f"++{name}={_as_word(value)}"
    try:
        read = OverridesParser.create().parse_override(override)
        same = (read.key_or_group, repr(read.value())) == (name, repr(value)) and not read.is_sweep_override()
    except HydraException:
        same = False
    if not same:
        raise InputError("E-OVERRIDE", f"{name}={str(value)[:100]!r} cannot be said in Hydra's words")
    return override


def _as_word(value: Any) -> str:
    if isinstance(value, str):
        plain_word = re.fullmatch(r"[A-Za-z_/.][\w./-]*", value) and value.lower() not in _NO_TEXTS
        return value if plain_word else QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(_as_word, value))}]"
    if isinstance(value, dict):
        keys = [re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value]
        return f"{{{','.join(f'{key}:{_as_word(one)}' for key, one in zip(keys, value.values(), strict=True))}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def read_value(override: str) -> Any:
    """The value that Hydra reads in an override.

    Raises:
        InputError: the text is not an override (``E-OVERRIDE``).
    """
    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        raise InputError("E-OVERRIDE", _how_to_quote(override)) from error


def settings_of(config_name: str, overrides: list[str], output_dir: Path) -> dict[str, Any]:
    """The config that Hydra would pass to a job, in plain values, with ``output_dir`` as the job's folder.

    Raises:
        InputError: the overrides do not give a config (``E-OVERRIDE``), or a value is missing (``E-CONFIG``).
    """
    GlobalHydra.instance().clear()
    try:
        config = _composed(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError("E-OVERRIDE", _told(error, config_name, overrides)) from error
    current = HydraConfig.instance().cfg
    with open_dict(config):
        config.hydra.runtime.output_dir = str(output_dir)
    HydraConfig.instance().set_config(config)
    try:
        return dict(plain(_without_hydra(config)))
    finally:
        HydraConfig.instance().cfg = current


def explain(error: BaseException, config_name: str, overrides: list[str]) -> str | None:
    """The message for an error that the user can fix; None for any other error.

    Such errors are a wrong override (``E-OVERRIDE``), flags that exclude each other (``E-FLAGS``), or too little space
    on disk or in memory (``E-DISK``, ``E-MEMORY``).
    """
    message = str(error).strip()
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"E-DISK: {error.filename or 'the disk'}: {error.strerror}; make room, or choose another place"
    if "torch" in sys.modules and import_module("loralight.training.out_of_memory").is_out_of_memory(error):
        return "E-MEMORY: there is too little memory; give smaller batches, shorter rows or a smaller model"
    if isinstance(error, ValueError) and message.startswith("Config group override must be"):
        return "E-OVERRIDE: null is not a choice; write ~logger to use none"
    if isinstance(error, ValueError) and message.startswith(("Only one of --run", "The --resolve flag")):
        return f"E-FLAGS: {message}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if cause := error.__cause__:
        message += f"\n{str(cause).strip()}"
    if isinstance(error, OverrideParseException):
        return f"E-OVERRIDE: {_how_to_quote(error.override)}"
    if found := re.search(r"Ambiguous value for argument '(.*)'$", message, re.MULTILINE):
        return f"E-OVERRIDE: {_how_to_quote(found[1])}. A list is name=[a,b]; several values are for loralight sweep"
    if found := re.search(r"Could not override '([^']+)'", message):
        return f"E-OVERRIDE: there is no setting {found[1]!r}.{_nearest_setting(found[1], config_name, overrides)}"
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        group, option = found.groups()
        listed = message.partition("Available options")[2].partition("Config search path")[0]
        options = [line.strip() for line in listed.splitlines() if line.startswith("\t")]
        faults = "".join(
            f"\nThe plugin {plugin.name} ({plugin.origin}) is broken: {plugin.fault}"
            for plugin in discover()
            if plugin.fault
        )
        hint = f"{did_you_mean(option, options)} Possible: {', '.join(options)}"
        if group == "hydra/launcher" and option in _EXTRAS:
            hint = f' It comes with pip install "loralight[{_EXTRAS[option]}]"'
        if reason := _NOT_OFFERED.get((group, option)):
            return f"E-OVERRIDE: {group}={option}: {reason}"
        return f"E-OVERRIDE: {group}={option}: there is no such choice.{hint}{faults}"
    return f"E-OVERRIDE: {message}"


def _how_to_quote(override: str) -> str:
    """The message for an override that Hydra's grammar does not take, such as a text with a bracket."""
    name, is_given, value = override.partition("=")
    if not is_given:
        return f"{override!r} is no override: a setting is name=value"
    quoted = shlex.quote(f"{name}={QuotedString(value, Quote.double).with_quotes()}")
    return f"{override!r} cannot be read. If the value is a text, quote it, once more for the shell: {quoted}"


def _told(error: BaseException, config_name: str, overrides: list[str]) -> str:
    return (explain(error, config_name, overrides) or str(error)).removeprefix("E-OVERRIDE: ")


def _nearest_setting(key: str, config_name: str, overrides: list[str]) -> str:
    kept = [override for override in overrides if override.lstrip("+~").partition("=")[0] != key]
    try:
        GlobalHydra.instance().clear()
        settings = list(_settings(compose(config_name, kept)))
    except (HydraException, OmegaConfBaseException):
        return ""
    parent, _, name = key.rpartition(".")
    siblings = [setting.rpartition(".")[2] for setting in settings if setting.rpartition(".")[0] == parent]
    if near := did_you_mean(name, siblings):
        return near.replace("'", f"'{parent}.", 1) if parent and near.count("'") == 2 else near
    elsewhere = [setting for setting in settings if setting.rpartition(".")[2] == name]
    if elsewhere:
        return f" Did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
    known = f" {parent} has: {', '.join(siblings)}." if siblings else did_you_mean(key, settings)
    return f"{known} An argument that is not listed needs a plus: +{key}=..."


def _settings(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        name = f"{prefix}{key!s}"
        yield name
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _settings(node, f"{name}.")


@contextmanager
def whole_errors() -> Iterator[None]:
    """A context in which Hydra raises its errors instead of printing them and exiting with code 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def plain(config: Any) -> Any:
    """A config, or part of one, as plain dicts and lists with every interpolation resolved.

    Raises:
        InputError: a value is missing, or refers to a setting that does not exist (``E-CONFIG``).
    """
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        told, name = str(error).partition("\n")[0], error.full_key  # which a message on a missing value cuts short
        raise InputError("E-CONFIG", f"{name}: {told}" if name and name not in told else told) from error
