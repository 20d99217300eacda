"""The tables of `docs/performance.md` in short: each row beside its goal, pass or short.

python benchmarks/bench.py [--only steps padding] [--full] [--data FOLDER]

Sentences are the demo's, or those of FOLDER, as `padding.py` takes it.
"""

import argparse
import logging
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import transformers
from rich.console import Console
from side_by_side import Row, show

from loralight import logs
from loralight.kernels.trial import processor

TABLES = ("steps", "lm_loss", "padding", "packing", "epoch", "prefix", "convolutions", "overhead")
OF_SENTENCES = ("padding", "epoch", "prefix")


def be_quiet() -> None:
    """Have no run tell of itself."""
    logs.configure()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def rows_of(table: str, quick: bool, data: dict[str, str | None]) -> list[Row]:
    """The rows of one of `TABLES`."""
    found: list[Row] = import_module(table).rows(quick, **data)
    return found


def main() -> None:
    """Print the tables one by one, then all rows in one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--full", action="store_true", help="as docs/performance.md has them; takes an hour or so")
    parser.add_argument("--data", metavar="FOLDER")
    arguments = parser.parse_args()
    console = Console()
    console.print(f"{processor()}, float32; medians of paired ratios", soft_wrap=True)
    for table in arguments.only:
        import_module(table)  # else a missing package would be told of after the tables before
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for table in arguments.only:
        start = time.monotonic()
        data = {"data": arguments.data} if table in OF_SENTENCES else {}
        # in a process of its own: what others leave of the heap costs one side more than the other
        with console.status(table), ProcessPoolExecutor(1, mp_context=spawn, initializer=be_quiet) as process:
            found = process.submit(rows_of, table, not arguments.full, data).result()
        show(found, f"{table}, in {time.monotonic() - start:.0f} s")
        rows += found
    show(rows, "loralight beside its peers")


if __name__ == "__main__":
    main()
