"""Fine-tuning of the last blocks; the first ones stay frozen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from loralight.adapters.methods.layer_wise import LayerWise
from loralight.errors import InputError
from loralight.models.blocks import blocks, depths


@dataclass(frozen=True, kw_only=True)
class LastLayers(LayerWise):
    """Train the last blocks of the stack and the layers after them (a final norm, a pooler), but no output embeddings.

    Args:
        num_layers: number of blocks to train; a quarter of all blocks if None, with which Lee et al., 2019,
            https://arxiv.org/abs/1911.03090, reach 90 % of the gain of full fine-tuning on BERT and RoBERTa.
        lr: learning rate per step, that of full fine-tuning.
    """

    num_layers: int | None = None
    lr: float = 5e-5

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        found = list(blocks(candidates))
        number = math.ceil(len(found) / 4) if self.num_layers is None else self.num_layers
        if not 1 <= number <= len(found):
            raise InputError(
                "E-NUM-LAYERS", f"adapter.num_layers is {number}; {type(model).__name__} has {len(found)} blocks"
            )
        depth_of, top = depths(model)
        words = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
        frozen = set() if words is None else set(words.parameters())
        after = []
        for name, module in candidates.items():
            own = [p for p in module.parameters(recurse=False) if depth_of[p] >= top - number and p not in frozen]
            after += [name] if any(depth_of[parameter] == top for parameter in own) else []
            for parameter in own:
                parameter.requires_grad_(True)
        return {"(last layers)": found[-number:], **({"(after them)": after} if after else {})}
