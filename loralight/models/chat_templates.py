"""Chat templates are programs that come with a model; a template that loops, or takes ever more memory, is stopped."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError

_SECONDS = 2.0  # of a processor's time; a chat of a thousand turns takes less than one
_GIGABYTE = 2**20 if sys.platform != "darwin" else 2**30  # as the system counts a process's memory
_LONGEST = 2**20  # characters of a template; known ones have up to 20,000
_FILE = "<template>"  # the file name that jinja2 gives to a template's code


class EndlessError(TemplateError):
    """A template that does not end, or would take all memory."""


@contextmanager
def bounded(seconds: float = _SECONDS) -> Iterator[None]:
    """A context in which each template that this thread renders ends within some seconds of the thread's CPU time.

    A trace function sees each line that Python runs, so a template can be stopped at any line, in any thread, however
    busy the machine is. This takes 0.3 ms a chat.

    Raises:
        EndlessError: a template takes longer, or the process takes another gigabyte.
    """
    before, end = sys.gettrace(), time.thread_time() + seconds
    most = _memory() + _GIGABYTE

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise EndlessError(f"it goes on for more than {seconds:g} seconds")
        if _memory() > most:
            raise EndlessError("it takes more and more memory")
        return step

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return step(frame, event, argument) if frame.f_code.co_filename == _FILE else None

    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_template(template: str) -> None:
    """Raise `EndlessError` for a template that could take for ever before its first line, or within a single line."""
    if len(template) > _LONGEST:
        raise EndlessError(f"it has more than {_LONGEST:,} characters")
    if any((kind, value) == ("operator", "**") for _, kind, value in Environment().lex(template)):
        raise EndlessError("it raises a number to a power (**), which no chat needs")
