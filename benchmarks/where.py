"""Where a training step of BERT-base's shape goes, ours beside PEFT's, and how far the products are from their floor.

python benchmarks/where.py [--layers 3]

LoRA of rank 8 on every linear layer, 16 rows of 128 tokens, float32, one thread, AdamW's step included, no dropout. The
floor is the time of the products with frozen weights at the best rate that one of `F.linear` or oneDNN reaches.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from side_by_side import in_turns
from steps import ENCODER, as_trained, bert, check, sides, states_loss, step_of
from torch.profiler import ProfilerActivity, profile

from loralight.kernels.onednn import Matrix
from loralight.kernels.trial import processor

NUM_STEPS, RANK, TOKENS = 5, 8, 16 * 128
SHAPES = ((768, 768), (3072, 768), (768, 3072))  # of frozen weights
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "mkldnn::_linear_pointwise")
KINDS = {
    "attention": ("attention", "bmm", "softmax"),
    "norms and activations": ("norm", "gelu", "tanh"),
    "optimizer": ("Optimizer", "_foreach", "_fused", "addcdiv", "addcmul", "lerp"),
    "passes over memory": ("add", "mul", "copy", "fill", "zero", "sum", "cat", "clone", "index", "embedding", "mean"),
}


def kind_of(name: str, shapes: list[list[int]]) -> str:
    """The line of the table that an operation belongs to."""
    if name in PRODUCTS:
        sizes = {size for shape in shapes if len(shape) == 2 for size in shape}
        return "products with the rank as a side" if RANK in sizes else "products with frozen weights"
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "the rest")


def milliseconds(step: Callable[[], Any]) -> dict[str, float]:
    """Time of a step by kind of operation, without that of the operations that it calls."""
    step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(NUM_STEPS):
            step()
    found: Counter[str] = Counter()
    for event in profiler.events():
        found[kind_of(event.name, event.input_shapes)] += event.self_cpu_time_total
    return {kind: time / 1000 / NUM_STEPS for kind, time in found.items()}


def floor() -> dict[str, float]:
    """Milliseconds of a layer's frozen products, forward and backward, by way, at least ``floor``; and the rate."""
    found: Counter[str] = Counter()
    for (out, fan_in), count in zip(SHAPES, (4, 1, 1), strict=True):
        stored, x = torch.randn(out, fan_in), torch.randn(TOKENS, fan_in)
        ways = {}
        for side, weight, rows in (("forward", stored, x), ("backward", stored.T, torch.randn(TOKENS, out))):
            ways[f"F.linear {side}"] = partial(F.linear, rows, weight)
            ways[f"oneDNN {side}"] = partial(Matrix(weight).linear, rows, None)
        medians = {way: 1000 * statistics.median(times) for way, times in in_turns(ways, rounds=7).items()}
        for way, time in medians.items():
            found[way.split()[0]] += count * time
        found["floor"] += count * sum(
            min(medians[f"F.linear {side}"], medians[f"oneDNN {side}"]) for side in ("forward", "backward")
        )
        found["multiplications"] += 2 * count * TOKENS * out * fan_in
    found["GFLOP/s"] = 2 * found.pop("multiplications") / found["floor"] / 1e6
    return found


def orders() -> Table:
    """The low-rank products in both orders of their operands."""
    table = Table(f"product of rank 8, {TOKENS:,} tokens", "as written", "the other order", "a pass over its operand")
    for width in (768, 3072):
        x, down, up = torch.randn(TOKENS, width), torch.randn(RANK, width), torch.randn(width, RANK)
        low, y = torch.randn(RANK, TOKENS), torch.randn(TOKENS, width)
        pairs = {
            f"A x, {width} in": (partial(torch.mm, down, x.T), partial(torch.mm, x, down.T)),
            f"B's gradient, {width} out": (partial(torch.mm, low, y), partial(torch.mm, y.T, low.T)),
            f"y + B (A x), {width} out": (partial(y.addmm_, low.T, up.T), partial(y.T.addmm_, up, low)),
        }
        for name, (written, other) in pairs.items():
            times = in_turns({"written": written, "other": other, "pass": y.sum}, rounds=15)
            table.add_row(name, *(f"{1000 * statistics.median(one):.2f} ms" for one in times.values()))
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    layers = parser.parse_args().layers
    torch.set_num_threads(1)
    console = Console()
    console.print(processor(), soft_wrap=True)
    loss = partial(states_loss, ids=torch.randint(1000, 30000, (16, TOKENS // 16)))
    models = sides(partial(bert, layers), ENCODER["all"])
    check(models, loss)
    steps = {
        side: step_of(model, loss if side == "PEFT" else as_trained(loss))
        for side, model in models.items()
        if side != "packed"
    }
    found = {side: milliseconds(step) for side, step in steps.items()}
    table = Table("a step, by profiler", *found)
    for kind in sorted(set().union(*found.values()), key=lambda kind: -found["PEFT"].get(kind, 0)):
        table.add_row(kind, *(f"{times.get(kind, 0):.1f} ms" for times in found.values()))
    table.add_row("all", *(f"{sum(times.values()):.1f} ms" for times in found.values()), style="bold")
    console.print(table)
    least = floor()
    for way in ("F.linear", "oneDNN", "floor"):
        console.print(f"frozen products, {way}: {layers * least[way]:.1f} ms")
    console.print(f"the floor's rate: {least['GFLOP/s']:.0f} GFLOP/s")
    console.print(orders())


if __name__ == "__main__":
    main()
