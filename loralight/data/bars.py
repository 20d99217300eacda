"""The progress bars of `datasets`, which draws one for every pass over rows, however short."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

_LONG = 10_000
"""A pass over at least this many rows takes long enough to show a bar."""


@contextmanager
def hiding_bars(num_rows: int = 0) -> Iterator[None]:
    """A context in which bars are hidden, except for a long pass on a terminal; afterwards they are as before."""
    hidden = are_progress_bars_disabled()
    if hidden or (num_rows >= _LONG and sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
