"""Attentions that are an architecture's own code, with functions that compute them within the rows of a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from loralight.acceleration.disentangled import attend_disentangled
from loralight.acceleration.ragged import Ragged

_Attend = Callable[..., Any]


class _Way(NamedTuple):
    attend: _Attend
    prepares: bool


_WAYS: dict[str, _Way] = {}


def attends_in_rows(*kinds: type[nn.Module] | str, prepares: bool = False) -> Callable[[_Attend], _Attend]:
    """Decorates a function that computes an attention of some classes within the rows of a line.

    It takes the place of the attention's ``forward`` where an encoder leaves out padding: it is called with the
    attention, the `Ragged` rows and the arguments of ``forward``, whose states are the tokens of all rows, (1, tokens,
    width), and it returns what ``forward`` does.

    Args:
        kinds: the classes, or their full names, as importing an architecture takes time. Subclasses count for
            themselves.
        prepares: whether the class asks for transformers' attention functions, which know of rows, so that this
            function only prepares arguments and calls ``forward``.
    """

    def register(attend: _Attend) -> _Attend:
        _WAYS.update({kind if isinstance(kind, str) else _name(kind): _Way(attend, prepares) for kind in kinds})
        return attend

    return register


def _name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _way_of(module: nn.Module) -> _Way | None:
    return _WAYS.get(_name(type(module)))


def _is_apart(module: nn.Module) -> bool:
    """Whether an attention asks for none of transformers' attention functions, and is known here."""
    way = _way_of(module)
    return way is not None and not way.prepares


class Own(NamedTuple):
    """The attentions of a stack that are computed in another way where they are given rows.

    Args:
        modules: the attentions.
        is_complete: whether each block has one that asks nothing of transformers' attention functions.
    """

    modules: list[nn.Module]
    is_complete: bool


def own_of(blocks: Sequence[nn.Module]) -> Own:
    """The attentions of ``blocks`` of which a function is registered."""
    found = [[part for part in block.modules() if _way_of(part)] for block in blocks]
    return Own([part for parts in found for part in parts], all(any(map(_is_apart, parts)) for parts in found))


def attend_as_their_own_(own: Own) -> None:
    """Have the attentions compute within rows where they are given a `Ragged` in the place of a mask."""
    for module in own.modules:
        way = _way_of(module)
        assert way is not None
        module.forward = _Forward(module, way.attend)


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
    attend: _Attend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = type(self.module).forward
        rows = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
        return plain(self.module, *args, **kwargs) if rows is None else self.attend(self.module, rows, *args, **kwargs)


attends_in_rows("transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention")(attend_disentangled)


@attends_in_rows("transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention")
def _attend_with_bias(module: Any, rows: Ragged, states: Tensor, _: Any, position_bias: Tensor, **__: Any) -> Any:
    """MPNet's attention: a bias by distance, which is that of the padded batch, (batch, heads, longest, longest)."""
    width = module.attention_head_size
    query, key, value = (layer(states)[0].unflatten(-1, (-1, width)) for layer in (module.q, module.k, module.v))

    def scores(q: Tensor, k: Tensor) -> Tensor:
        of_pairs: Tensor = (q * width**-0.5) @ k.transpose(-1, -2)
        return of_pairs + position_bias[:1, :, : q.shape[2], : q.shape[2]]

    return (module.o(rows.attended(query, key, value, scores, module.dropout).flatten(1)).unsqueeze(0),)


@attends_in_rows(
    "transformers.models.t5.modeling_t5.T5Attention",
    "transformers.models.mt5.modeling_mt5.MT5Attention",
    prepares=True,
)
def _bias_of_a_row(module: Any, rows: Ragged, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """T5's attention: the first block computes the bias of all, by distance in a row and not in the line."""
    if kwargs.get("position_bias") is None and module.has_relative_attention_bias:
        kwargs["position_bias"] = module.compute_bias(rows.lengths[0], rows.lengths[0], device=states.device)
    return type(module).forward(module, states, *args, **kwargs)
