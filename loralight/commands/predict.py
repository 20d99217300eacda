"""``loralight predict``: a line of JSON for each input."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist
from omegaconf import DictConfig
from rich import get_console
from rich.progress import track

from loralight import logs
from loralight.artifacts.bank import load_many
from loralight.artifacts.loading import build, find_recipe
from loralight.artifacts.output import refuse_existing
from loralight.commands.measuring import refuse_another_device
from loralight.commands.typed import typed
from loralight.config.build import build_trainer, task_class
from loralight.config.check import check_keywords
from loralight.config.composition import plain
from loralight.config.sharding import shards
from loralight.data.dealing import evenly
from loralight.errors import InputError
from loralight.models.trust import trust_of, trusting
from loralight.training.fully_shard import FullyShard
from loralight.training.launch import check_processes, launch_without_folder, process_rank, world_size
from loralight.training.task import AdapterTask


def main(config: DictConfig) -> None:
    """The job that Hydra runs: reads all inputs before it loads the model, and writes predictions batch by batch."""
    logs.configure(rank=process_rank() or 0)
    settings = plain(config)
    output, size, run = settings["output"], settings["batch_size"], settings["run"]
    refuse_existing(output)
    if output and settings["stream"]:
        raise InputError("E-STREAM", "stream=true writes to the terminal; leave out output, or stream")
    if size < 1:
        raise InputError("E-BATCH", f"batch_size is {size}; give at least 1")
    check_processes(settings["trainer"])
    asks = settings["input"] == "-" and sys.stdin.isatty()
    if several := world_size(settings["trainer"]) > 1:
        _refuse_several(settings, asks=asks)
    if isinstance(run, str):
        kinds = [task_class(_recipe(settings)[1])]
    else:
        if settings["stream"]:
            raise InputError("E-STREAM", "stream=true writes one adapter's text; leave it out, or name one run")
        folders = _folders(run).values()
        kinds = [task_class(find_recipe(folder, base=settings["checkpoint"])[1]) for folder in folders]
    inputs = _read(kinds, settings, asks=asks)
    if several:
        launch_without_folder(work, {**settings, "inputs": inputs})
        return
    tasks = _load(settings, settings["device"])
    with _opened(output) as opened:
        for start in _shown(range(0, len(inputs), size), settings) if not asks else ():
            _answer(inputs[start : start + size], tasks, settings, opened)
        for line in typed("> ") if asks else ():
            try:
                with _as_standard_input(line):
                    inputs = kinds[0].read_inputs("-")
                _answer(inputs, tasks, settings, opened)
            except InputError as error:
                print(f"loralight: {error}", file=sys.stderr)  # the user may type another line


def work(settings: dict[str, Any], folder: Path) -> None:
    """The work of each of several processes: predictions for its part of the inputs, which the first one writes.

    A batch of all processes is cut into a part for each, in the inputs' order. So lines are written as in one process,
    and memory holds the predictions of one batch. Where each process has only a part of the weights, all of them
    predict each input: texts that end after other numbers of tokens would leave some waiting for the others' parts.
    """
    logs.configure(rank=process_rank() or 0)
    strategy = build_trainer({"trainer": settings["trainer"]}, folder, []).strategy
    if isinstance(strategy, FullyShard):
        tasks = _load(settings, "cpu")
        strategy.shard_to_predict_(*tasks.values())
    else:
        strategy.setup_environment()
        tasks = _load(settings, str(strategy.root_device))
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    num_parts = 1 if isinstance(strategy, FullyShard) else num_ranks
    inputs, size = settings["inputs"], settings["batch_size"] * num_parts
    starts = range(0, len(inputs), size)
    with _opened(settings["output"]) if rank == 0 else nullcontext() as opened:
        for start in _shown(starts, settings) if rank == 0 else starts:
            lines = StringIO()
            if own := evenly(inputs[start : start + size], rank % num_parts, num_parts):
                _answer(own, tasks, settings, lines)
            parts: list[str] | None = [""] * num_ranks if rank == 0 else None
            dist.gather_object(lines.getvalue(), parts)
            if opened is not None:
                opened.write("".join((parts or ())[:num_parts]))
                opened.flush()


def _refuse_several(settings: Mapping[str, Any], *, asks: bool) -> None:
    """Raise `InputError` if settings need a single process, which here are several."""
    trainer = settings["trainer"]
    if asks or settings["stream"]:
        what = "typed inputs are" if asks else "stream=true is"
        raise InputError("E-DEVICES", f"{what} answered by one process; give trainer.devices=1, or input=FILE")
    if settings["input"] == "-" and process_rank() is not None:
        raise InputError("E-DEVICES", "torchrun and srun start processes without a common standard input: input=FILE")
    refuse_another_device(settings)
    if shards(trainer) and not isinstance(settings["run"], str):
        raise InputError("E-FSDP", "trainer=fsdp predicts with one adapter's weights in parts: name one run")


def _recipe(settings: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The adapter's folder and the recipe of its task, of a single run."""
    given = {name: settings[name] for name in ("task", "arguments")}
    return find_recipe(settings["run"], base=settings["checkpoint"], **given)


def _load(settings: Mapping[str, Any], device: str) -> Mapping[str, AdapterTask]:
    """The tasks, by the names of their runs."""
    run = settings["run"]
    if not isinstance(run, str):
        return load_many(_folders(run), base=settings["checkpoint"], device=device, **trust_of(settings))
    with trusting(**trust_of(settings)):
        return {run: build(*_recipe(settings), device)}


def _opened(output: str | None) -> AbstractContextManager[TextIO]:
    return Path(output).open("w", encoding="utf-8") if output else nullcontext(sys.stdout)


def _shown(starts: Iterable[int], settings: Mapping[str, Any]) -> Iterable[int]:
    """The starts of batches, with a bar in a terminal that gets no predictions."""
    if settings["output"] and sys.stderr.isatty():
        return track(starts, description="predicting", console=get_console())
    return starts


@contextmanager
def _as_standard_input(line: str) -> Iterator[None]:
    before, sys.stdin = sys.stdin, StringIO(line)
    try:
        yield
    finally:
        sys.stdin = before


def _answer(
    batch: Sequence[Any], tasks: Mapping[str, AdapterTask], settings: Mapping[str, Any], opened: TextIO
) -> None:
    """Write each adapter's predictions for a batch of inputs."""
    options = settings["options"]
    if settings["stream"]:
        (task,) = tasks.values()
        for given in batch:
            for piece in task.stream(given, **options):
                print(piece, end="", flush=True)
            print()
        return
    answers = [task.predict(batch, batch_size=settings["batch_size"], **options) for task in tasks.values()]
    for row in zip(*answers, strict=True):
        for name, answer in zip(tasks, row, strict=True):
            line = answer if isinstance(settings["run"], str) else {"adapter": name, **answer}
            opened.write(json.dumps(line, ensure_ascii=False) + "\n")
    opened.flush()


def _folders(run: Any) -> dict[str, str]:
    """The folders of runs by name: those of a mapping, or each folder as its own name."""
    if isinstance(run, Mapping):
        return {str(name): str(folder) for name, folder in run.items()}
    folders = {str(folder): str(folder) for folder in run}
    if not folders or len(folders) < len(run):
        raise InputError("E-RUN", f"run={run}: give each folder once, and at least one")
    return folders


def _read(kinds: Sequence[type[AdapterTask]], settings: Mapping[str, Any], *, asks: bool) -> list[Any]:
    """The inputs, after checking that every task can take them and the options; none if the user will type them."""
    for kind in kinds:
        check_keywords(kind.predict_batch, settings["options"], "options")
    if len({kind.read_inputs.__func__ for kind in kinds}) > 1:  # type: ignore[attr-defined]  # it is a class method
        names = ", ".join(dict.fromkeys(kind.__name__ for kind in kinds))
        raise InputError("E-RUN", f"{names} read their inputs in different ways; predict with one run at a time")
    return [] if asks else kinds[0].read_inputs(settings["input"])
