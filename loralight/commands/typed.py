"""Lines that someone types at a prompt, or that a pipe brings."""

import sys
from collections.abc import Iterator
from contextlib import suppress


def typed(prompt: str) -> Iterator[str]:
    """Each line that is not empty, up to Ctrl-D; only a terminal shows the prompt."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):  # has keys edit the line and bring back earlier ones; Windows lacks it
        import readline  # noqa: F401
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            print()
            return
        if line:
            yield line
