"""A training step without padding, by family of models, beside the same step with it.

`python benchmarks/unpadding.py [FAMILY ...]`: six layers, 384 wide, random weights, LoRA of rank 8 on every linear
layer, AdamW included. Batches of 32 rows with lengths like those of sentences of SST-2, in random order. Both sides are
loralight's, so what differs is the padding alone.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from side_by_side import in_turns, ratio
from torch import Tensor
from transformers import PreTrainedModel

from loralight.acceleration import Facts, Unpadding
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable

ROUNDS = 12
WORDS = 2000
SIZES = {"vocab_size": WORDS, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
WIDE = SIZES | {"intermediate_size": 1536}
GATED = SIZES | {"intermediate_size": 1024, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": WIDE,
    "ModernBert": SIZES | {"intermediate_size": 576, "pad_token_id": 0},
    "DebertaV2": WIDE  # as DeBERTa v3
    | {"pos_att_type": ["p2c", "c2p"], "relative_attention": True, "share_att_key": True, "position_buckets": 256}
    | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    "MPNet": WIDE,
    "Albert": WIDE | {"embedding_size": 128},
    "EuroBert": GATED,
    "Llama": GATED | {"num_key_value_heads": 2},
}


def batches(random: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Rows of 4 to 64 tokens, 22 on average, after Gaussian logarithms."""
    for _ in range(ROUNDS):
        lengths = (torch.randn(32, generator=random) / 2 + 2.95).exp().long().add(2).clamp(4, 64)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.randint(5, WORDS, mask.shape, generator=random).where(mask, torch.tensor(0))
        yield {"input_ids": ids, "attention_mask": mask.long()}


def steps(model: PreTrainedModel, of: list[dict[str, Tensor]]) -> Callable[[], None]:
    """A function that takes a training step with the next batch."""
    optimizer, rest = torch.optim.AdamW(trainable(model.train()).values(), lr=1e-4), cycle(of)

    def step() -> None:
        batch = next(rest)
        F.cross_entropy(model(**batch).logits, torch.arange(32) % 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Print a ratio for each family."""
    torch.set_num_threads(1)
    for family in sys.argv[1:] or FAMILIES:
        torch.manual_seed(0)
        kind = getattr(transformers, f"{family}ForSequenceClassification")
        padded = kind(kind.config_class(**{"pad_token_id": 0, **FAMILIES[family]}, num_labels=2))
        head = [part for part in padded.children() if part is not padded.base_model]
        inject(padded, Lora(targets="all-linear", rank=8), head=head)
        unpadded = copy.deepcopy(padded)
        if (reason := Unpadding().attach_(Facts(model=unpadded))) is not None:
            raise SystemExit(f"{family}: {reason}")
        given = list(batches(torch.Generator().manual_seed(0)))
        ways = {"unpadded": steps(unpadded, given), "padded": steps(padded, given)}
        print(f"{family:12} {ratio(in_turns(ways, rounds=ROUNDS), 'unpadded', 'padded')}", flush=True)


if __name__ == "__main__":
    main()
