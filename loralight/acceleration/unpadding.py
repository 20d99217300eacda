"""Encoders that compute on a batch's tokens and not on its padding.

Random batches of short sentences hold two to three times as much padding as tokens. Linear layers, norms and
activations take tokens one by one, so the blocks are given the tokens of all rows in one line
(`loralight.acceleration.lines`). Only attention has to know which tokens share a row (`loralight.models.attention`).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from loralight.acceleration.base import Acceleration, Facts
from loralight.acceleration.lines import Lines, padded, rows_given, stack_of
from loralight.acceleration.own_attention import attend_as_their_own_, is_own, leave_, own_of
from loralight.acceleration.ragged import ALL_TOKENS, Ragged
from loralight.kernels.dropout import attend, can_be_cheap
from loralight.models.attention import Attention
from loralight.models.pretrained import num_embeddings

__all__ = ["Unpadding", "attend_by_row", "is_same", "is_unpadded", "outputs_of_short_rows", "padded"]

SHORT_ROWS = 3  # a model is tried on them


class Unpadding(Acceleration):
    """The encoder does not compute on padding, if its outputs stay the same on three short rows.

    It then returns 0 at padding, where its output had no meaning before.
    """

    needs_whole_weights = False

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []

    def attach_(self, facts: Facts) -> str | None:
        if not isinstance(facts.model, PreTrainedModel):
            return "the model is none of transformers"
        return _unpad_(facts.model, self._hooks)

    def detach_(self, model: nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        _pad_(model, self._hooks)


def is_unpadded(model: nn.Module) -> bool:
    """Whether ``model`` leaves out padding; an adapter may have replaced its attention since."""
    if not isinstance(model, PreTrainedModel):
        return False
    return _ATTENTION.is_of(model) or is_own(model)


def _unpad_(model: PreTrainedModel, hooks: list[RemovableHandle]) -> str | None:
    """Unpad ``model`` if its blocks have the form for it and three short rows give the same both ways.

    Args:
        hooks: a list to which the hooks that unpad are added.

    Returns:
        None, or the reason why ``model`` is not unpadded.
    """
    stack = stack_of(model)
    if stack is None:
        return "it has no single stack of blocks"
    own = own_of(stack.blocks)
    if (taken := _ATTENTION.why_not(model)) and not own.is_complete:
        return taken
    if model.can_generate() and not model.config.is_encoder_decoder:
        return "it writes text token by token, from a cache that has a place for padding"
    try:
        expected = outputs_of_short_rows(model)
    except Exception as error:  # a model may want other inputs, or give other outputs
        return f"it cannot be tried on texts: {' '.join(str(error).split())[:200]}"
    reasons = []
    for at_block in (False, True):  # some base models pool within the module that holds their blocks
        lines = Lines(hands_on=taken is not None, needs_beginnings=bool(own.modules), at_block=at_block)
        hooks += lines.hang_(stack)
        attend_as_their_own_(own)
        if not taken:
            _ATTENTION.take_place_in_(model)
        reason = _why_not(model, lines, expected)
        if reason is None:
            return None
        reasons.append(reason)
        _pad_(model, hooks)
    return reasons[0]


def _why_not(model: PreTrainedModel, lines: Lines, expected: Sequence[Tensor]) -> str | None:
    """The reason why three short rows in a line do not give what is expected; None if they do."""
    try:
        with lines.learning():
            found = outputs_of_short_rows(model)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # it takes only (batch, tokens)
        return f"its code takes no tokens in a line: {' '.join(str(error).split())[:200]}"
    if not lines.count:
        return "its mask is made by code of its own"
    return None if all(is_same(*pair) for pair in zip(found, expected, strict=True)) else "its outputs would differ"


def _pad_(model: PreTrainedModel, hooks: list[RemovableHandle]) -> None:
    """Undo all that `_unpad_` did."""
    while hooks:
        hooks.pop().remove()
    leave_(model)
    if _ATTENTION.is_of(model):
        _ATTENTION.leave_(model)


def attend_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Ragged | Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention within each row, in the form that transformers calls.

    Shapes: query, key, value (1, heads, tokens, width), the result (1, tokens, heads, width); queries may be those of
    first tokens alone. Without a `Ragged`, (batch, heads, tokens, width) and so on, as everywhere.
    """
    if not isinstance(mask, Ragged):
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    settings["is_causal"] = mask.is_causal
    dropout, scaling = settings.get("dropout", 0.0), settings.get("scaling") or query.shape[-1] ** -0.5
    bias = settings.pop("position_bias", None)  # of the longest row, (1, heads, tokens, tokens)
    if bias is not None and (len(bias) > 1 or bias.shape[-1] != mask.lengths[0]):
        raise ValueError("its bias by distance would be of all pairs of tokens in the line")
    is_simple = getattr(module, "num_key_value_groups", 1) == 1 and bias is None and not mask.is_causal
    all_tokens = ALL_TOKENS.get()
    is_whole = all_tokens is None
    if all_tokens is not None:
        key, value = (made.view(1, made.shape[1], -1, query.shape[-1]).transpose(1, 2) for made in all_tokens.made)
        all_tokens.made.clear()
    if bias is None and mask.is_plain and _has_flash(query, key, value, dropout):
        q, k, v = (_line(part) for part in (query, key, value))
        return _attend_in_line(q, k, v, mask, dropout, scaling).unsqueeze(0), None
    sizes = mask.sizes if is_whole else [group.shape[0] for group in mask.groups]
    lines = zip(_split(query, sizes), _split(key, mask.sizes), _split(value, mask.sizes), strict=True)
    attended = []
    for group, (q, k, v) in zip(mask.groups, lines, strict=True):
        rectangle = group.pad(q) if is_whole else q.unsqueeze(2), group.pad(k), group.pad(v)
        if bias is not None:
            settings["position_bias"] = bias[:, :, : group.shape[1], : group.shape[1]]
        if is_simple and can_be_cheap(q, dropout):
            rows = attend(*rectangle, group.mask, dropout, scaling).transpose(1, 2)
        else:  # causal attention does not look at later tokens, and so not at padding
            of_group = None if mask.is_causal else group.mask
            rows = sdpa_attention_forward(module, *rectangle, of_group, **settings)[0]
        attended.append(group.line_up(rows) if is_whole else rows.flatten(0, 1))
    return (attended[0] if len(attended) == 1 else torch.cat(attended)).unsqueeze(0), None


def _has_flash(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether FlashAttention takes these tokens (1, heads, tokens, width): on a GPU, in half precision."""
    if not query.is_cuda or query.shape[-1] % 8:
        return False
    is_grouped = query.shape[1] != key.shape[1]
    parameters = torch.backends.cuda.SDPAParams(query, key, value, None, dropout, False, is_grouped)
    return torch.version.hip is None and torch.backends.cuda.can_use_flash_attention(parameters)


def _attend_in_line(query: Tensor, key: Tensor, value: Tensor, rows: Ragged, dropout: float, scaling: float) -> Tensor:
    """Attention within each row by FlashAttention (Dao, 2023, https://arxiv.org/abs/2307.08691), without padding.

    `torch.nested` calls the same kernel; `torch.nn.attention.varlen` has no dropout. A padded rectangle needs a mask,
    and with a mask each batch of a new shape cost 0.2 s more on an H200.

    Shapes: query (tokens, heads, width), or (batch, heads, width) of first tokens alone; key, value (tokens, heads,
    width); the result is like the query.
    """
    of_keys, longest = rows.offsets, rows.lengths[0]
    of_queries, most = of_keys, longest
    if len(query) < len(key):
        of_queries, most = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device), 1
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, of_queries, of_keys, most, longest, dropout, rows.is_causal, False, scale=scaling
    )[0]
    return attended


def _split(line: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Parts (tokens, heads, width) of these sizes, from (1, heads, tokens, width)."""
    tokens = _line(line)  # not split if they are one part: a split costs a pass of zeros in the backward pass
    return [tokens] if len(sizes) == 1 else torch.split(tokens, sizes)


def _line(line: Tensor) -> Tensor:
    """(tokens, heads, width) of (1, heads, tokens, width)."""
    return line.squeeze(0).transpose(0, 1)  # [0] would cost a pass of zeros in the backward pass


def _mask(*, mask_function: Any, attention_mask: Tensor | None = None, **settings: Any) -> Ragged | Tensor | None:
    """The rows of a batch whose tokens go into a line, with what a token sees of its row; else the mask of `sdpa`."""
    rows = None if torch.compiler.is_compiling() else rows_given()
    is_of_rows = rows is not None and attention_mask is not None and attention_mask.shape == rows.shape
    if rows is None or not is_of_rows or settings.get("use_vmap"):  # a function that takes no tensors of numbers
        return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **settings)
    if mask_function is bidirectional_mask_function:
        return rows
    if mask_function is causal_mask_function:
        return rows.causal
    return rows.attending(mask_function, rows.places, rows.shape[1])


_ATTENTION = Attention("unpadded", attend_by_row, _mask)


@torch.no_grad()
def outputs_of_short_rows(model: PreTrainedModel, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """States and logits at the tokens of three short rows, in evaluation mode; padding is computed too if ``whole``."""
    ids = torch.arange(5, 26, device=model.device).view(SHORT_ROWS, 7) % (num_embeddings(model) or 26)
    mask = torch.arange(7, device=model.device) < torch.tensor([[4], [7], [2]], device=model.device)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    if model.config.is_encoder_decoder:  # BART's classifier reads the end of a text
        ids[torch.arange(SHORT_ROWS), mask.sum(1) - 1] = model.config.eos_token_id
    given = {"input_ids": ids.where(mask, padding), "attention_mask": mask.long(), **_for_decoder(model, ids)}
    kept: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda *given: kept.append(given[-1]))
    was_training = model.training
    try:
        model.train(False)
        with padded() if whole else nullcontext():
            output = model(**given)
    finally:
        hook.remove()
        model.train(was_training)
    of_encoder = kept[0].get("encoder_last_hidden_state")
    states = kept[0]["last_hidden_state"] if of_encoder is None else of_encoder
    logits = output.get("logits", states)  # a model without a head gives states alone
    return states[mask], logits[mask] if logits.shape[:2] == mask.shape else logits


def _for_decoder(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """What the decoder of an encoder-decoder reads, where it is not the encoder's input."""
    is_told = model.config.is_encoder_decoder and model.can_generate()
    return {"decoder_input_ids": ids[:, :3]} if is_told else {}


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding: to 4e-6 of the largest number in float32, 3 % in half."""
    if found.shape != expected.shape:
        return False
    tolerance = min(32 * torch.finfo(expected.dtype).eps, 0.03) * expected.abs().max()
    return bool(((found - expected).abs() <= tolerance).all())
