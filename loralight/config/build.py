"""Builds a task, its data and its trainer from a config: for training, resuming, evaluating and predicting."""

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from loralight.adapters.base import Adapter
from loralight.annotations import mismatch
from loralight.config.check import check, find_target
from loralight.config.composition import trusted_packages
from loralight.config.earlier import ARGUMENTS_OF_TASKS
from loralight.config.plugins import conf_folders, discover, task_file
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.models.quantisation import find_quantiser
from loralight.models.trust import trust_of, trusting
from loralight.training.background import BackgroundCheckpointIO
from loralight.training.checkpoint_paths import CheckpointPaths
from loralight.training.epochs import AUTO
from loralight.training.forgetting.probe import ForgettingProbe
from loralight.training.launch import num_nodes
from loralight.training.optim import check_optimizer
from loralight.training.position import Position
from loralight.training.task import AdapterTask


def check_config(config: Mapping[str, Any]) -> None:
    """Check every part of a training config before anything heavy is built.

    Args:
        config: as composed for ``loralight train``, in plain values.

    Raises:
        InputError: see `check`, `find_quantiser`, `check_optimizer` and the adapter's class; or
            ``trainer.gradient_clip_val`` is not a number of at least 0 (``E-TRAINER``).
    """
    trusted = trusted_packages()
    if expected := mismatch(config.get("seed", 0), int):
        raise InputError("E-CONFIG", f"seed: {config['seed']!r} is not {expected}")
    check(config.get("adapter"), "adapter", trusted)
    check(optimizer_node(config), "optimizer", trusted)
    check(trainer_node(config), "trainer", trusted)
    check(config.get("data"), "data", trusted, base=TaskData)
    make(config["adapter"])  # refuses values of the right type that make no sense, such as rank 0
    check_optimizer(make(optimizer_node(config)))
    clip = config["trainer"].get("gradient_clip_val")
    if clip is not None and not 0 <= clip < math.inf:  # nan would make every gradient nan
        raise InputError("E-TRAINER", f"trainer.gradient_clip_val is {clip}; give at least 0, which clips nothing")
    check(task_node(config), "task", trusted, complete=False, base=AdapterTask)  # the data supplies the rest
    if (method := (config.get("task") or {}).get("quantize")) is not None:
        find_quantiser(method)
    if config.get("scheduler") is not None:
        check(config["scheduler"], "scheduler", trusted)
    if config.get("forgetting") is not None:
        check(config["forgetting"], "forgetting", trusted)
        build_probe(config)
    for group in ("callbacks", "logger", "acceleration"):
        for name, node in (config.get(group) or {}).items():
            if node is not None:
                check(node, f"{group}.{name}", trusted)


def build_probe(config: Mapping[str, Any]) -> ForgettingProbe | None:
    """The probe that measures what a run forgets; None if there is none.

    Raises:
        InputError: its class is not a probe (``E-PLUGIN``), or a setting is wrong (``E-FORGETTING``).
    """
    if config.get("forgetting") is None:
        return None
    probe = make(config["forgetting"])
    if not isinstance(probe, ForgettingProbe):
        kind = type(probe).__name__
        raise InputError("E-PLUGIN", f"forgetting._target_: {kind} is no loralight.training.ForgettingProbe")
    return probe


def make(config: Mapping[str, Any], **supplied: Any) -> Any:
    """Build the object that a node with a ``_target_`` describes, nodes inside it first.

    Plain values are passed unchanged. `hydra.utils.instantiate` is not used: it would turn a dataclass into a config
    and lists into ``ListConfig``, which the classes built here do not expect.
    """
    target = find_target(config["_target_"], "config", trusted_packages())
    given = {key: value for key, value in config.items() if key not in ("_target_", "_partial_")}
    built = {
        key: make(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in given.items()
    }
    if config.get("_partial_"):
        return partial(target, **built, **supplied)
    try:
        return target(**built, **supplied)
    except ModuleNotFoundError as error:  # such as wandb, for which lightning has only the interface
        raise InputError("E-PACKAGE", f"{config['_target_']} needs another package: {error}") from error


def build_data(config: Mapping[str, Any]) -> TaskData:
    """The data module, with its splits read and checked."""
    with trusting(**trust_of(config)):
        data = make(config["data"])
        if not isinstance(data, TaskData):
            kind = type(data).__name__
            raise InputError("E-PLUGIN", f"data._target_: {kind} does not derive from loralight.TaskData")
        data.setup()
    return data


def build_task(config: Mapping[str, Any], data_arguments: Mapping[str, Any]) -> AdapterTask:
    """The task with its model built and its adapter injected, seeded by ``config["seed"]``.

    Args:
        config: at least ``task`` and ``adapter``; ``optimizer`` and ``scheduler`` to train; the permissions in
            ``model``, see `loralight.models.trust`.
        data_arguments: arguments of the task that the data knows.
    """
    lightning.seed_everything(config.get("seed", 0), verbose=False)
    nodes = {"optimizer": optimizer_node(config), "scheduler": config.get("scheduler")}
    training = {part: make(node) for part, node in nodes.items() if node is not None}
    accelerations = {name: make(node) for name, node in (config.get("acceleration") or {}).items() if node is not None}
    given = {**task_node(config), **data_arguments}
    with trusting(**trust_of(config)):
        task = make(given, adapter=make(config["adapter"]), accelerations=accelerations, **training)
        if not isinstance(task, AdapterTask):
            kind = type(task).__name__
            raise InputError("E-PLUGIN", f"task._target_: {kind} does not derive from loralight.AdapterTask")
        task.configure_model()
    return task


def optimizer_node(config: Mapping[str, Any]) -> Any:
    """The optimizer's settings, at the method's own rate if a rate is still to be found (``lr=auto``)."""
    node = config.get("optimizer")
    return {**node, "lr": config["adapter"]["lr"]} if isinstance(node, Mapping) and node.get("lr") == AUTO else node


def task_node(config: Mapping[str, Any]) -> Any:
    """The task's settings, with frozen BatchNorm where that is still to be decided (``batch_norm=auto``)."""
    node = config.get("task")
    return {**node, "batch_norm": "frozen"} if isinstance(node, Mapping) and node.get("batch_norm") == AUTO else node


def trainer_node(config: Mapping[str, Any]) -> Any:
    """The trainer's settings for Lightning, with numbers in place of ``auto``.

    A run whose epochs the data will decide (``max_epochs=auto``) has no end yet. ``num_nodes=auto`` is the number of
    machines on which torchrun or srun has started processes.
    """
    node = config.get("trainer")
    if not isinstance(node, Mapping):
        return node
    decided = {"num_nodes": num_nodes(node)} if node.get("num_nodes") == AUTO else {}
    return {**node, **decided, **({"max_epochs": -1} if node.get("max_epochs") == AUTO else {})}


def monitored(config: Mapping[str, Any], data: TaskData) -> str:
    """The metric that chooses the best checkpoint; the data's own if ``monitor.metric`` is ``auto``."""
    metric = str(config["monitor"]["metric"])
    return f"validation/{data.monitored()}" if metric == AUTO else metric


def with_metric(config: dict[str, Any], data: TaskData) -> dict[str, Any]:
    """The config with the data's own metric in place of ``auto``, in ``monitor`` and in callbacks."""
    metric = monitored(config, data)
    callbacks = {
        name: {**node, "monitor": metric} if (node or {}).get("monitor") == AUTO else node
        for name, node in (config.get("callbacks") or {}).items()
    }
    return {**config, "monitor": {**config["monitor"], "metric": metric}, "callbacks": callbacks}


def build_trainer(
    config: Mapping[str, Any], output_dir: Path, callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    """A trainer that writes into ``output_dir`` and leaves sampling, summary and progress to loralight.

    Raises:
        InputError: Lightning refuses the settings, or they set something that loralight sets (``E-TRAINER``).
    """
    chosen = [make(node) for node in (config.get("callbacks") or {}).values() if node is not None]
    node = trainer_node(config)
    if not node.pop("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    supplied = {
        "callbacks": [Position(), *chosen, *callbacks, CheckpointPaths(output_dir)],
        "logger": [make(node) for node in (config.get("logger") or {}).values() if node is not None],
        "plugins": [BackgroundCheckpointIO(output_dir)],
        "default_root_dir": output_dir,
        "use_distributed_sampler": False,  # our samplers give each row to one rank, and can resume
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
    }
    if taken := [name for name in supplied if name in node]:
        raise InputError(
            "E-TRAINER",
            f"trainer.{taken[0]} is loralight's to set; choose callbacks=, logger= and a folder (hydra.run.dir=)",
        )
    try:
        trainer = make(node, **supplied)
    except (ValueError, MisconfigurationException) as error:
        raise InputError("E-TRAINER", " ".join(str(error).split())) from error
    assert isinstance(trainer, lightning.Trainer)
    return trainer


def check_trainer(config: Mapping[str, Any], output_dir: Path) -> None:
    """Check a run's trainer before processes start and anything is read.

    Raises:
        InputError: see `build_trainer`; or its strategy would start processes by itself (``E-TRAINER``).
    """
    if hasattr(sys, "ps1"):  # in a notebook Lightning refuses what the processes that loralight starts can do
        return
    trainer = build_trainer({**config, "callbacks": {}, "logger": {}}, output_dir, [])
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "E-TRAINER",
            f"trainer.strategy={config['trainer']['strategy']} starts processes by itself, and loralight has started "
            "them already: trainer.strategy=ddp, with any number of trainer.devices",
        )


def recipe(config: Mapping[str, Any], data_arguments: Mapping[str, Any], task: AdapterTask) -> dict[str, Any]:
    """The recipe for an adapter's folder: names and arguments to build task and adapter from, never a ``_target_``.

    Args:
        config: the config of the training.
        data_arguments: arguments of the task that the data knows.
        task: with its adapter in the form that is saved, see `Adapter.finish_`.
    """
    arguments = {**task_node(config), **data_arguments, **task.found_arguments()}
    del arguments["_target_"]
    names = config["names"]
    return {
        "task": {"name": names["task"], "arguments": arguments, "settled": task.settled},
        "adapter": adapter_recipe(task.adapter, names["adapter"]),
    }


def task_class(made: Mapping[str, Any]) -> type[AdapterTask]:
    """The class of a recipe's task, by the name of an installed plugin.

    Raises:
        InputError: no such plugin is installed (``E-TASK``), or its class is not a task (``E-PLUGIN``).
    """
    return _task_class(task_file(made["task"]["name"]), trusted_packages())


def task_name(kind: type[AdapterTask]) -> str | None:
    """The name of a task's class in an installed plugin; None if it is in none."""
    for file in (file for plugin in discover() for file in plugin.tasks()):
        target = _target_in(file, "task")
        if target.rpartition(".")[2] == kind.__name__ and find_target(target, "task", trusted_packages()) is kind:
            return file.stem
    return None


def task_classes() -> dict[str, type[AdapterTask]]:
    """The classes of all tasks that can be imported, by name; a broken task is reported only when it is asked for."""
    trusted, found = trusted_packages(), {}
    for file in (file for plugin in discover() for file in plugin.tasks()):
        with suppress(InputError):
            found[file.stem] = _task_class(file, trusted)
    return found


def _task_class(file: Path, trusted: list[str]) -> type[AdapterTask]:
    found = find_target(_target_in(file, "task"), "task", trusted)
    if not (isinstance(found, type) and issubclass(found, AdapterTask)):
        raise InputError("E-PLUGIN", f"task._target_: {found!r} does not derive from loralight.AdapterTask")
    return found


def adapter_node(made: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a recipe's adapter, by the name of an installed method.

    Raises:
        InputError: no such adapter is installed (``E-ADAPTER``).
    """
    return {**made["adapter"]["arguments"], "_target_": _target_in(_adapter_file(made["adapter"]["name"]), "adapter")}


def checked_adapter(made: Mapping[str, Any]) -> Adapter:
    """The adapter of a recipe, by the name of an installed method; nothing in the recipe is imported.

    Raises:
        InputError: no such adapter is installed (``E-ADAPTER``), or it does not take these arguments (``E-CONFIG``).
    """
    node = adapter_node(made)
    check(node, "adapter", trusted_packages())
    adapter: Adapter = make(node)
    return adapter


def adapter_recipe(adapter: Adapter, name: str) -> dict[str, Any]:
    """A recipe's entry for ``adapter``: ``name`` if that file in ``conf/adapter`` has its class, else another name."""
    files = _adapter_files()
    for known in (name, *files):
        target = _target_in(files[known], "adapter")
        of_class = target.rpartition(".")[2] == type(adapter).__name__
        if of_class and find_target(target, "adapter", trusted_packages()) is type(adapter):
            return {"name": known, "arguments": asdict(adapter)}
    raise TypeError(f"no file in conf/adapter configures a {type(adapter).__name__}, so it could not be loaded again")


def from_recipe(made: Mapping[str, Any]) -> AdapterTask:
    """The task of a recipe, by the names of an installed plugin and adapter; nothing in the recipe is imported.

    Raises:
        InputError: no such plugin or adapter is installed, or it does not take these arguments (``E-TASK``,
            ``E-CONFIG``).
    """
    task = _target_in(task_file(made["task"]["name"]), "task")
    settled = made["task"].get("settled", {})
    given = {**made["task"]["arguments"], **settled}
    if "adapter" in given:
        raise InputError("E-CONFIG", "task: the adapter is not among a recipe's arguments of the task")
    arguments = {name: value for name, value in given.items() if name not in ARGUMENTS_OF_TASKS}
    config = {"task": {**arguments, "_target_": task}, "adapter": adapter_node(made), "acceleration": _accelerations()}
    check(config["adapter"], "adapter", trusted_packages())
    check({**config["task"], "adapter": config["adapter"]}, "task", trusted_packages())
    built = build_task(config, {})
    built.settled = dict(settled)
    return built


def _accelerations() -> dict[str, Any]:
    """The nodes of the default accelerations; folders do not record accelerations, as they change no result."""
    file = next(file for folder in conf_folders() if (file := folder / "acceleration/default.yaml").is_file())
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def adapter_classes() -> dict[str, type[Adapter]]:
    """The installed adapter methods, by the names of their files."""
    trusted = trusted_packages()
    found = {
        name: find_target(_target_in(file, "adapter"), "adapter", trusted) for name, file in _adapter_files().items()
    }
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Adapter)}


def _target_in(file: Path, part: str) -> Any:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return (content["task"] if part == "task" else content)["_target_"]


def _adapter_file(name: str) -> Path:
    files = _adapter_files()
    if name not in files:
        raise InputError("E-ADAPTER", f"there is no adapter method {name!r}; installed are {', '.join(sorted(files))}")
    return files[name]


def _adapter_files() -> dict[str, Path]:
    files = {file.stem: file for folder in conf_folders() for file in folder.glob("adapter/*.yaml")}
    return dict(sorted(files.items()))
