"""Architectures whose attention is their own code, where it is known how to compute it within the rows of a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loralight.acceleration.disentangled import attend_disentangled
from loralight.acceleration.ragged import Ragged


class Own(NamedTuple):
    """The attentions of a stack that are computed in another way where they are given rows.

    Args:
        modules: the attentions.
        is_complete: whether each block has one that asks nothing of transformers' attention functions.
    """

    modules: list[nn.Module]
    is_complete: bool


def own_of(blocks: Sequence[nn.Module]) -> Own:
    """The attentions of ``blocks`` whose code is known here."""
    found = [[part for part in block.modules() if _way_of(part)] for block in blocks]
    return Own([part for parts in found for part in parts], all(any(map(_is_apart, parts)) for parts in found))


def attend_as_their_own_(own: Own) -> None:
    """Have the attentions compute within rows where they are given a `Ragged` in the place of a mask."""
    for module in own.modules:
        way = _way_of(module)
        assert way is not None
        module.forward = _Forward(module, way)


def leave_(model: nn.Module) -> None:
    """Restore the attentions' own forward pass."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _Forward):
            del vars(module)["forward"]


def is_own(model: nn.Module) -> bool:
    """Whether attentions of ``model`` compute within rows without transformers' attention functions."""
    return any(_is_apart(module) and isinstance(vars(module).get("forward"), _Forward) for module in model.modules())


@dataclass(eq=False)
class _Forward:
    """Replaces an attention's own forward pass."""

    module: nn.Module
    way: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = type(self.module).forward
        rows = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
        return plain(self.module, *args, **kwargs) if rows is None else self.way(self.module, rows, *args, **kwargs)


def _attend_with_bias(module: Any, rows: Ragged, states: Tensor, _: Any, position_bias: Tensor, **__: Any) -> Any:
    """MPNet's attention: a bias by distance, which is that of the padded batch, (batch, heads, longest, longest)."""
    width = module.attention_head_size
    query, key, value = (layer(states)[0].unflatten(-1, (-1, width)) for layer in (module.q, module.k, module.v))
    attended = []
    parts = map(rows.split, (query, key, value))
    for group, (q, k, v) in zip(rows.groups, zip(*parts, strict=True), strict=True):
        longest = group.shape[1]
        scores = (group.pad(q) * width**-0.5) @ group.pad(k).transpose(-1, -2)
        scores = scores + position_bias[:1, :, :longest, :longest]
        attended.append(group.attended(scores, group.pad(v), module.dropout))
    return (module.o(torch.cat(attended).flatten(1)).unsqueeze(0),)


def _bias_of_a_row(module: Any, rows: Ragged, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """T5's attention: the first block computes the bias of all, by distance in a row and not in the line."""
    if kwargs.get("position_bias") is None and module.has_relative_attention_bias:
        kwargs["position_bias"] = module.compute_bias(rows.lengths[0], rows.lengths[0], device=states.device)
    return type(module).forward(module, states, *args, **kwargs)


# by name, as importing an architecture takes time
_APART: dict[str, Callable[..., Any]] = {
    "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": attend_disentangled,
    "transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention": _attend_with_bias,
}
_BIASED: dict[str, Callable[..., Any]] = {
    "transformers.models.t5.modeling_t5.T5Attention": _bias_of_a_row,
    "transformers.models.mt5.modeling_mt5.MT5Attention": _bias_of_a_row,
}


def _way_of(module: nn.Module) -> Callable[..., Any] | None:
    return (_APART | _BIASED).get(_name_of(module))


def _is_apart(module: nn.Module) -> bool:
    return _name_of(module) in _APART


def _name_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
