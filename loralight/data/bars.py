"""The progress bars of `datasets`, which draws one for each pass over rows, however short."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

_LONG = 10_000
"""Rows from which a pass takes long enough to watch it."""


@contextmanager
def bars(num_rows: int = 0) -> Iterator[None]:
    """Show them for a long pass and to a terminal alone; afterwards they are as they were."""
    hidden = are_progress_bars_disabled()
    (enable_progress_bars if num_rows >= _LONG and sys.stderr.isatty() else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if hidden else enable_progress_bars)()
