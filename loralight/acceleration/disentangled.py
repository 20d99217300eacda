"""DeBERTa's attention within the rows of a line: He et al., 2021, https://arxiv.org/abs/2006.03654.

A score adds three products: of two tokens, of a token with the embedding of its distance to the other, and the same
from the other's side. The embeddings are of 512 distances, and a short sentence has few of them: only those are
computed, once for the batch. Transformers' own code computes all of them for each row.
"""

from typing import Any

import torch
from torch import Tensor, nn

from loralight.acceleration.ragged import Ragged


def attend_disentangled(
    module: Any, rows: Ragged, states: Tensor, *_: Any, rel_embeddings: Tensor | None = None, **__: Any
) -> tuple[Tensor, None]:
    """Attention of transformers' ``DisentangledSelfAttention``.

    Shapes: states and the result (1, tokens, width), rel_embeddings (distances, width).
    """
    kinds = module.pos_att_type if module.relative_attention else []
    width = module.attention_head_size * (1 + len({"c2p", "p2c"} & set(module.pos_att_type)))
    scale = 1 / torch.tensor(width, dtype=torch.float32).sqrt().item()  # in double precision too, as in transformers
    layers = (module.query_proj, module.key_proj, module.value_proj)
    query, key, value = (_heads(layer(states[0]), module) for layer in layers)  # (tokens, heads, width of a head)
    of_distance, numbers = _of_distances(module, rel_embeddings, rows.lengths[0]) if kinds else ({}, None)

    def scores(q: Tensor, k: Tensor) -> Tensor:
        q = q * scale
        of_tokens = q @ k.transpose(-1, -2)
        return of_tokens if numbers is None else of_tokens + _scores_by_distance(q, k * scale, of_distance, numbers)

    return rows.attended(query, key, value, scores, module.dropout).flatten(1).unsqueeze(0), None


def _of_distances(module: Any, embeddings: Tensor | None, longest: int) -> tuple[dict[str, Tensor], Tensor]:
    """The keys and queries of distances that a row of ``longest`` tokens has, (heads, distances, width of a head).

    Also the number of each distance among them, from the most negative on: (2 * longest - 1,).
    """
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position  # slow to import

    assert embeddings is not None
    span = module.pos_ebd_size
    distances = torch.arange(1 - longest, longest, device=embeddings.device)
    if module.position_buckets > 0 and module.max_relative_positions > 0:
        distances = make_log_bucket_position(distances, module.position_buckets, module.max_relative_positions)
    numbers = (distances.long() + span).clamp(0, 2 * span - 1)
    first, last = int(numbers[0]), int(numbers[-1])
    used = module.pos_dropout(embeddings[first : last + 1])
    shared = (module.key_proj, module.query_proj)
    layers = shared if module.share_att_key else (_layer(module, "pos_key_proj"), _layer(module, "pos_query_proj"))
    kinds = [(kind, layer) for kind, layer in zip(("c2p", "p2c"), layers, strict=True) if kind in module.pos_att_type]
    return {kind: _heads(layer(used), module).transpose(0, 1) for kind, layer in kinds}, numbers - first


def _layer(module: nn.Module, name: str) -> Any:
    return module._modules.get(name)


def _scores_by_distance(query: Tensor, key: Tensor, of_distance: dict[str, Tensor], numbers: Tensor) -> Tensor | float:
    """The products of tokens with the embeddings of their distances, (rows, heads, longest, longest)."""
    longest, middle = query.shape[2], len(numbers) // 2
    places = torch.arange(longest, device=query.device)
    number = numbers[places[:, None] - places + middle].expand(*query.shape[:2], -1, -1)
    scores: Tensor | float = 0.0
    if (keys := of_distance.get("c2p")) is not None:
        scores = scores + (query @ keys.transpose(-1, -2)).gather(-1, number)
    if (queries := of_distance.get("p2c")) is not None:
        # by key and query, whose distance is the opposite of that by query and key
        scores = scores + (key @ queries.transpose(-1, -2)).gather(-1, number.transpose(-1, -2)).transpose(-1, -2)
    return scores


def _heads(line: Tensor, module: Any) -> Tensor:
    return line.view(len(line), module.num_attention_heads, -1)
