"""``loralight predict``: a line of JSON for each input."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig
from rich import get_console
from rich.progress import track

from loralight import logs
from loralight.artifacts.bank import load_many
from loralight.artifacts.loading import build, find_recipe
from loralight.artifacts.output import refuse_existing
from loralight.commands.typed import typed
from loralight.config.build import task_class
from loralight.config.check import check_keywords
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.models.trust import trust_of, trusting
from loralight.training.task import AdapterTask


def main(config: DictConfig) -> None:
    """The job that Hydra runs: reads all inputs before it loads the model, and writes predictions batch by batch."""
    logs.configure()
    settings = plain(config)
    output, size = settings["output"], settings["batch_size"]
    refuse_existing(output)
    if output and settings["stream"]:
        raise InputError("E-STREAM", "stream=true writes to the terminal; leave out output, or stream")
    if size < 1:
        raise InputError("E-BATCH", f"batch_size is {size}; give at least 1")
    run, base, device = settings["run"], settings["checkpoint"], settings["device"]
    asks = settings["input"] == "-" and sys.stdin.isatty()
    if isinstance(run, str):
        path, made = find_recipe(run, base=base, task=settings["task"], arguments=settings["arguments"])
        kinds = [task_class(made)]
        inputs = _read(kinds, settings, asks=asks)
        with trusting(**trust_of(settings)):
            tasks: Mapping[str, AdapterTask] = {run: build(path, made, device)}
    else:
        if settings["stream"]:
            raise InputError("E-STREAM", "stream=true writes one adapter's text; leave it out, or name one run")
        folders = _folders(run)
        kinds = [task_class(find_recipe(folder, base=base)[1]) for folder in folders.values()]
        inputs = _read(kinds, settings, asks=asks)
        tasks = load_many(folders, base=base, device=device, **trust_of(settings))
    starts = range(0, len(inputs), size)
    if output and not asks and sys.stderr.isatty():
        starts = track(starts, description="predicting", console=get_console())  # type: ignore[assignment]
    with Path(output).open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as opened:
        for start in starts:
            _answer(inputs[start : start + size], tasks, settings, opened)
        for line in typed("> ") if asks else ():
            try:
                with _as_standard_input(line):
                    inputs = kinds[0].read_inputs("-")
                _answer(inputs, tasks, settings, opened)
            except InputError as error:
                print(f"loralight: {error}", file=sys.stderr)  # the user may type another line


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
