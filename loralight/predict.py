"""``loralight predict``: a line of JSON for each input."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import get_console
from rich.progress import track

from loralight import logs
from loralight.composition import plain
from loralight.errors import InputError
from loralight.loading import load
from loralight.splits import FORMATS, read_file


def main(config: DictConfig) -> None:
    """The job that Hydra runs: reads all inputs before the model is loaded, writes as it predicts."""
    logs.configure()
    settings = plain(config)
    inputs = read_inputs(settings["input"])
    output = settings["output"]
    if output and Path(output).exists():
        raise InputError(
            "E-OUTPUT", f"output={output}: the file exists, and nothing is overwritten; choose another name"
        )
    if settings["batch_size"] < 1:
        raise InputError("E-BATCH", f"batch_size is {settings['batch_size']}; give at least 1")
    task = load(settings["run"], base=settings["checkpoint"], device=settings["device"])
    size = settings["batch_size"]
    starts = range(0, len(inputs), size)
    if output and sys.stderr.isatty():
        starts = track(starts, description="predicting", console=get_console())  # type: ignore[assignment]
    with Path(output).open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as opened:
        for start in starts:
            for answer in task.predict(inputs[start : start + size], batch_size=size):
                opened.write(json.dumps(answer, ensure_ascii=False) + "\n")
            opened.flush()


def read_inputs(source: str) -> list[Any]:
    """The inputs in a file or on standard input (``-``).

    A line of text is an input, one that is a JSON object a record; rows of CSV, JSONL and Parquet files are records.

    Raises:
        InputError: the file cannot be read, or is empty (``E-DATA``, ``E-DATA-EMPTY``).
    """
    if source != "-" and Path(source).suffix.lower() in FORMATS:
        inputs: list[Any] = read_file(source).to_list()
    else:
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("E-DATA", f"input={source}: cannot be read as text: {error}") from error
        lines = text.split("\n")  # splitlines() would also split at what a text may hold, such as U+2028
        inputs = [_line(line, number, source) for number, line in enumerate(lines, start=1) if line.strip()]
    if not inputs:
        raise InputError("E-DATA-EMPTY", f"input={source} has no lines")
    return inputs


def _line(line: str, number: int, source: str) -> Any:
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(
            "E-DATA", f"input={source}, line {number} begins like a JSON record, but is none: {error}"
        ) from error
