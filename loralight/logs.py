"""Logging: each process has a log file in the run's folder, and only the first also writes to the terminal."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import TypeVar

from rich import get_console, reconfigure
from rich.console import Console, RenderableType
from rich.logging import RichHandler

__all__ = ["configure", "cut", "human", "keep", "logger", "show", "telling"]

T = TypeVar("T")
logger = logging.getLogger("loralight")
_UNITS = ("B", "kB", "MB", "GB", "TB")
_reports = logging.getLogger("loralight.reports")  # tables, which the terminal has seen already

# Warnings that a user of loralight cannot act on, as their cause is handled or intended.
_UNHELPFUL = (
    r".*does not have many workers",  # tokenised rows need none
    r".*logs directory .* exists and is not empty",  # the run's own folder
    r".*Checkpoint directory .* exists and is not empty",  # two callbacks share one
    r".*your dataloader is\s+not resumable",  # ours is, through the data module
    r".*is smaller than the logging interval",
    r".*Found \d+ module\(s\) in eval mode",  # frozen BatchNorm
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*`is_gradient_checkpointing` is deprecated",
    r"`ModelCheckpoint\(monitor=.*could not find the monitored key",  # a run that ends before its first validation
)


def configure(log_file: Path | None = None, *, rank: int = 0, line: str = "%(message)s") -> None:
    """Send log lines and warnings to ``log_file``, and those of the first process also to standard error.

    Args:
        log_file: the file; None for none.
        rank: the rank of this process.
        line: format of the part of a line after the time, as in `logging`.
    """
    root = logging.getLogger()
    for handler in (*root.handlers, *_reports.handlers):
        handler.close()
    _reports.handlers = []
    handlers: list[logging.Handler] = []
    if rank == 0:
        reconfigure(stderr=True)  # shared with Lightning's progress bar: log lines go above it
        handlers.append(_terminal(line))
    if log_file is not None:
        in_file = _LogFile(log_file, encoding="utf-8")
        in_file.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {line}"))
        handlers.append(in_file)
        _reports.handlers = [in_file]
    root.handlers = handlers
    root.setLevel(logging.INFO)
    _reports.propagate = False
    # `import lightning` installs handlers of its own, so that every line would be printed twice
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.core"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).propagate = True
    for noisy in ("httpx", "datasets", "fsspec", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for message in _UNHELPFUL:
        warnings.filterwarnings("ignore", message=message)


class _LogFile(logging.FileHandler):
    """Silently drops lines that cannot be written: a full disk is reported when a checkpoint is written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _terminal(line: str) -> logging.Handler:
    if sys.stderr.isatty():
        rich = RichHandler(console=get_console(), show_path=False, show_level=False, log_time_format="%H:%M:%S")
        rich.setFormatter(logging.Formatter(line))
        return rich
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {line}", datefmt="%H:%M:%S"))
    return handler


def show(*reports: RenderableType) -> None:
    """Print tables and lines to standard output, and keep them in the log file.

    In a terminal they are printed by the console of the progress bar, which would overwrite the first line otherwise.
    """
    kept = StringIO()
    in_terminal = sys.stdout.isatty() and get_console().is_terminal
    for console in (get_console() if in_terminal else Console(), Console(file=kept, width=120)):
        for report in reports:
            console.print(report, markup=False, highlight=False, soft_wrap=isinstance(report, str))
    _reports.info("\n%s", kept.getvalue())


def telling(parts: Iterable[T], what: str, total: int, *, every: float = 10.0) -> Iterator[T]:
    """Iterate over ``parts``, and log every ``every`` seconds how many of ``total`` are done."""
    told = monotonic()
    for done, part in enumerate(parts):
        if monotonic() - told >= every:
            told = monotonic()
            logger.info("%s: %d of %d", what, done, total)
        yield part


def cut(text: str, most: int = 240) -> str:
    """A text for a cell of a table; a long text, such as a dialogue, is cut in the middle."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def human(count: float) -> str:
    """A number of bytes in B, kB, MB, GB or TB (powers of 1000)."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def keep(line: str) -> None:
    """Write a line only to the log file."""
    _reports.info(line)
