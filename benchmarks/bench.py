"""The tables of `docs/performance.md` in short: each row beside its goal, pass or short.

python benchmarks/bench.py [--only steps padding] [--full] [--data FOLDER]

Sentences are the demo's, or those of FOLDER, as `padding.py` takes it.
"""

import argparse
import logging
import time
import warnings
from importlib import import_module

import torch
import transformers
from rich.console import Console
from side_by_side import show

from loralight import logs

TABLES = ("steps", "lm_loss", "padding", "epoch", "prefix", "convolutions", "overhead")
OF_SENTENCES = ("padding", "epoch", "prefix")


def main() -> None:
    """Print the tables one by one, then all rows in one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--full", action="store_true", help="as docs/performance.md has them; takes an hour or so")
    parser.add_argument("--data", metavar="FOLDER")
    arguments = parser.parse_args()
    logs.configure()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # each run would tell of itself
    console = Console()
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float32; medians of paired ratios")
    rows = []
    for table, module in {table: import_module(table) for table in arguments.only}.items():
        start = time.monotonic()
        with console.status(table):
            data = {"data": arguments.data} if table in OF_SENTENCES else {}
            found = module.rows(not arguments.full, **data)
        show(found, f"{table}, in {time.monotonic() - start:.0f} s")
        rows += found
    show(rows, "loralight beside its peers")


if __name__ == "__main__":
    main()
