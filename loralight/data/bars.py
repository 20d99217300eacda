"""The progress bars of `datasets`, which draws one for each pass over rows, however short."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

_LONG = 10_000
"""Rows from which a pass takes long enough to watch it."""


@contextmanager
def bars(num_rows: int = 0) -> Iterator[None]:
    """Hide them but for a long pass, and from all but a terminal; afterwards they are as they were."""
    hidden = are_progress_bars_disabled()
    if hidden or (num_rows >= _LONG and sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
