"""``loralight predict``: a line of JSON for each input."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig
from rich import get_console
from rich.progress import track

from loralight import logs
from loralight.build import task_class
from loralight.composition import plain
from loralight.config_check import check_keywords
from loralight.errors import InputError
from loralight.loading import build, find_recipe


def main(config: DictConfig) -> None:
    """The job that Hydra runs: reads all inputs before the model is loaded, writes as it predicts."""
    logs.configure()
    settings = plain(config)
    output, options, size = settings["output"], settings["options"], settings["batch_size"]
    if output and Path(output).exists():
        raise InputError(
            "E-OUTPUT", f"output={output}: the file exists, and nothing is overwritten; choose another name"
        )
    if output and settings["stream"]:
        raise InputError("E-STREAM", "stream=true writes to the terminal; leave out output, or stream")
    if size < 1:
        raise InputError("E-BATCH", f"batch_size is {size}; give at least 1")
    said = {"base": settings["checkpoint"], "task": settings["task"], "arguments": settings["arguments"]}
    path, made = find_recipe(settings["run"], **said)
    kind = task_class(made)
    check_keywords(kind.predict_batch, options, "options")
    inputs = kind.read_inputs(settings["input"])
    task = build(path, made, settings["device"])
    if settings["stream"]:
        for given in inputs:
            for piece in task.stream(given, **options):
                print(piece, end="", flush=True)
            print()
        return
    starts = range(0, len(inputs), size)
    if output and sys.stderr.isatty():
        starts = track(starts, description="predicting", console=get_console())  # type: ignore[assignment]
    with Path(output).open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as opened:
        for start in starts:
            for answer in task.predict(inputs[start : start + size], batch_size=size, **options):
                opened.write(json.dumps(answer, ensure_ascii=False) + "\n")
            opened.flush()
