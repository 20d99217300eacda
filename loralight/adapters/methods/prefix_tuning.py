"""Prefix tuning: Li and Liang, 2021, https://arxiv.org/abs/2101.00190."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loralight.adapters.base import Adapter, Added
from loralight.adapters.disabled import Switchable, is_off
from loralight.errors import InputError
from loralight.models.attention import PLAIN, Attention, attending_by, attention_of
from loralight.models.text_models import check_num_tokens, hidden_states, random_tokens, text_base


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Adapter):
    """Learned keys and values to which every token also attends, in every layer.

    They are passed to the attention function itself. So they take no position and no room of the text, are in no cache,
    and all documents of a packed row see them; they work in encoders and decoders alike. In training, the paper
    computes them by a network, which is left out here, as in P-Tuning v2 (Liu et al., 2022,
    https://arxiv.org/abs/2110.07602). They are initialised from real words, as the paper advises.

    Args:
        num_tokens: number of keys and values in each layer.
        lr: learning rate per step, in the middle of the range that P-Tuning v2 searched.
    """

    num_tokens: int = 20
    lr: float = 5e-3

    starts_at_base: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_tokens(self.num_tokens)

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        base = text_base(model, "prefix_tuning")
        assert isinstance(model, PreTrainedModel)
        before = attention_of(model)
        found = _keys_and_values(model, base, random_tokens(base, self.num_tokens))
        for attention, (key, value) in found.items():
            attention.add_module("prefix", Prefix(key[0], value[0], instead_of=before))
        _ATTENTION.take_place_in_(model)
        return {"(prefix)": [name for name, module in candidates.items() if module in found]}

    def undecayed(self, model: nn.Module) -> set[nn.Parameter]:
        return {p for module in model.modules() if isinstance(module, Prefix) for p in module.parameters()}


class Prefix(Added, Switchable):
    """An attention's learned keys and values, (heads, tokens, width of a head).

    Args:
        key: initial value of the keys.
        value: initial value of the values.
        instead_of: the attention function of the base, as transformers calls it.
    """

    def __init__(self, key: Tensor, value: Tensor, *, instead_of: str) -> None:
        super().__init__()
        dtype = torch.promote_types(key.dtype, torch.float32)  # half precision would round small steps away
        self.key = nn.Parameter(key.to(dtype, copy=True))
        self.value = nn.Parameter(value.to(dtype, copy=True))
        self.instead_of = instead_of

    def check_base(self) -> None:
        """Raise ``E-DISABLED`` if the base has an attention function other than the one called in its place."""
        if self.instead_of != PLAIN:
            raise InputError(
                "E-DISABLED",
                f"the base attends by {self.instead_of!r}, which PrefixTuning has taken the place of: load it with "
                f"attn_implementation={PLAIN!r}",
            )

    def before(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The text's keys and values (batch, heads, tokens, width of a head) with the learned ones before them."""
        size = (len(key), -1, -1, -1)
        own = self.key.to(key.dtype).expand(size), self.value.to(value.dtype).expand(size)
        return torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)


def prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention to the module's prefix and to the positions that the mask allows, in the form that transformers calls.

    Shapes: query (batch, heads, queries, width), key and value (batch, heads, keys, width), attention_mask (batch, 1,
    queries, keys), True or 0 where a query sees a key.
    """
    prefix = module.prefix
    assert isinstance(prefix, Prefix)
    if is_off(prefix):
        prefix.check_base()
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    is_causal = settings.pop("is_causal", None)
    if attention_mask is None and query.shape[2] > 1 and (module.is_causal if is_causal is None else is_causal):
        shape = (1, 1, query.shape[2], key.shape[2])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=key.device).tril(key.shape[2] - query.shape[2])
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (prefix.key.shape[1], 0), value=seen)
    key, value = prefix.before(key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **settings)


_ATTENTION = Attention("prefix", prefix_attention, sdpa_mask)


def _keys_and_values(
    model: PreTrainedModel, base: PreTrainedModel, tokens: Tensor
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """The keys and values that each attention of ``base`` computes from ``tokens``, by the attention's module.

    Raises:
        InputError: the model does not use an attention function of transformers (``E-TEXT-MODEL``).
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *given: Any, **settings: Any) -> Any:
        found[module] = key, value
        if settings.get("softcap") is not None:
            raise ValueError  # transformers 5.3 would compute without the cap, and not raise
        return sdpa_attention_forward(module, query, key, value, *given, **settings)

    with attending_by(model, attend):
        try:
            hidden_states(base, tokens)
        except (ValueError, TypeError):  # a kind of attention that PyTorch's function does not compute
            found = {}
    if not found:
        raise InputError(
            "E-TEXT-MODEL",
            f"{type(base).__name__} computes attention in a way of its own, in which no prefix can join; choose "
            "another adapter than prefix_tuning",
        )
    return found
