"""Lines that a user types at a prompt, or that come through a pipe."""

import sys
from collections.abc import Iterator
from contextlib import suppress


def typed(prompt: str) -> Iterator[str]:
    """Each non-empty line, up to Ctrl-D; the prompt is shown only in a terminal."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):  # enables line editing and history; Windows lacks it
        import readline  # noqa: F401
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            print()
            return
        if line:
            yield line
