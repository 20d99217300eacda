"""Encoders that compute on a batch's tokens and not on its padding.

Random batches of short sentences hold two to three times as much padding as tokens. Linear layers, norms and
activations take tokens one by one, so an encoder's blocks are given the tokens of all rows in one line. Only attention
has to know which tokens share a row (`loralight.models.attention`).
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from loralight.acceleration.base import Acceleration, Facts
from loralight.acceleration.ragged import ALL_TOKENS, Ragged
from loralight.errors import InputError
from loralight.kernels.dropout import attend, can_be_cheap
from loralight.models.attention import Attention
from loralight.models.blocks import blocks
from loralight.models.pretrained import num_embeddings

SHORT_ROWS = 3  # a model is tried on them
_IS_OFF: ContextVar[bool] = ContextVar("unpadding_is_off", default=False)


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
        for hook in self._hooks:
            hook.remove()
        _ATTENTION.leave_(model)


@contextmanager
def padded() -> Iterator[None]:
    """A context in which padding is kept, for code that has to tell a batch's rows apart inside the model."""
    token = _IS_OFF.set(True)
    try:
        yield
    finally:
        _IS_OFF.reset(token)


def is_unpadded(model: nn.Module) -> bool:
    """Whether ``model`` leaves out padding; an adapter may have replaced its attention since."""
    return isinstance(model, PreTrainedModel) and _ATTENTION.is_of(model)


def _unpad_(model: PreTrainedModel, hooks: list[RemovableHandle]) -> str | None:
    """Unpad ``model`` if its encoder has the form for it and three short rows give the same both ways.

    Args:
        hooks: a list to which the hooks that unpad are added.

    Returns:
        None, or the reason why ``model`` is not unpadded.
    """
    encoder = encoder_of(model)
    if encoder is None:
        return "its blocks are in no encoder of their own"
    if taken := _ATTENTION.why_not(model):
        return taken
    if model.can_generate():
        return "it writes text token by token, from a cache that has a place for padding"
    try:
        expected = outputs_of_short_rows(model)
    except Exception as error:  # a model may want other inputs, or give other outputs
        return f"it cannot be tried on texts: {' '.join(str(error).split())[:200]}"
    hooks += [
        encoder.register_forward_pre_hook(_line_up, with_kwargs=True),
        encoder.register_forward_hook(_pad, with_kwargs=True),
    ]
    _ATTENTION.take_place_in_(model)
    with _passing_through(encoder) as lines:
        try:
            found = outputs_of_short_rows(model)
            if lines and all(is_same(*pair) for pair in zip(found, expected, strict=True)):
                return None
            reason = "its outputs would differ"
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # the encoder takes only (batch, tokens)
            reason = " ".join(str(error).split())[:200]
    for hook in hooks:
        hook.remove()
    _ATTENTION.leave_(model)
    return reason


def encoder_of(model: PreTrainedModel) -> nn.Module | None:
    """The module inside the base model whose list of blocks holds all of the model's blocks."""
    base = model.base_model
    try:
        owners = {name.rsplit(".", 2)[0] if name.count(".") > 1 else "" for name in blocks(dict(base.named_modules()))}
    except InputError:
        return None
    return base.get_submodule(owners.pop()) if len(owners) == 1 and "" not in owners else None


def _line_up(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give the encoder tokens in a line, and in place of the mask the rows, which attention needs to know."""
    if _IS_OFF.get() or torch.compiler.is_compiling():  # a compiled encoder takes rectangles
        return None
    names = list(inspect.signature(encoder.forward).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    mask = given.get("attention_mask")
    is_asked_for_more = given.get("output_hidden_states") or given.get("output_attentions")
    # classifiers read the first place, so it must be a token; a GPU waits for the answer
    if not isinstance(mask, Tensor) or mask.ndim != 2 or is_asked_for_more or not mask[:, 0].all():
        return None
    ragged = Ragged(mask)
    return (), {**given, names[0]: ragged.line_up(given[names[0]]), "attention_mask": ragged}


def _pad(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    ragged = kwargs.get("attention_mask")
    if isinstance(ragged, Ragged):
        states = output["last_hidden_state"]
        is_whole = states.shape[1] == sum(ragged.lengths)
        output["last_hidden_state"] = ragged.pad(states) if is_whole else ragged.pad_firsts(states)
    return output


def attend_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Ragged | Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention within each row, in the form that transformers calls.

    Shapes: query, key, value (1, heads, tokens, width), the result (1, tokens, heads, width); queries may be those of
    first tokens alone. Without a `Ragged`, (batch, heads, tokens, width) and so on, as everywhere.
    """
    if not isinstance(mask, Ragged):
        mask = mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    settings["is_causal"] = mask.is_causal
    dropout, scaling = settings.get("dropout", 0.0), settings.get("scaling") or query.shape[-1] ** -0.5
    is_biased = settings.get("position_bias") is not None
    is_plain = getattr(module, "num_key_value_groups", 1) == 1 and not is_biased
    all_tokens = ALL_TOKENS.get()
    is_whole = all_tokens is None
    if all_tokens is not None:
        key, value = (made.view(1, made.shape[1], -1, query.shape[-1]).transpose(1, 2) for made in all_tokens.made)
        all_tokens.made.clear()
    if not is_biased and _has_flash(query, key, value, dropout):
        q, k, v = (_line(part) for part in (query, key, value))
        return _attend_in_line(q, k, v, mask, dropout, scaling).unsqueeze(0), None
    sizes = mask.sizes if is_whole else [group.shape[0] for group in mask.groups]
    lines = zip(_split(query, sizes), _split(key, mask.sizes), _split(value, mask.sizes), strict=True)
    attended = []
    for group, (q, k, v) in zip(mask.groups, lines, strict=True):
        rectangle = group.pad(q) if is_whole else q.unsqueeze(2), group.pad(k), group.pad(v)
        if is_plain and not mask.is_causal and can_be_cheap(q, dropout):
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


def _mask(*, mask_function: Any, attention_mask: Tensor | None = None, **settings: Any) -> Tensor | None:
    """The padding mask itself where it suffices; for sliding windows or causal attention, the mask of `sdpa`."""
    if mask_function is bidirectional_mask_function and attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **settings)


_ATTENTION = Attention("unpadded", attend_by_row, _mask)


@contextmanager
def _passing_through(encoder: nn.Module) -> Iterator[list[Ragged]]:
    """Records the batches that ``encoder`` is given in lines."""
    lines: list[Ragged] = []

    def look(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(kwargs.get("attention_mask"), Ragged):
            lines.append(kwargs["attention_mask"])

    hook = encoder.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield lines
    finally:
        hook.remove()


@torch.no_grad()
def outputs_of_short_rows(model: PreTrainedModel, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """States and logits at the tokens of three short rows, in evaluation mode; padding is computed too if ``whole``."""
    ids = torch.arange(5, 26, device=model.device).view(SHORT_ROWS, 7) % (num_embeddings(model) or 26)
    mask = torch.arange(7, device=model.device) < torch.tensor([[4], [7], [2]], device=model.device)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    kept: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda *given: kept.append(given[-1]["last_hidden_state"]))
    was_training = model.training
    try:
        model.train(False)
        with padded() if whole else nullcontext():
            logits = model(input_ids=ids.where(mask, padding), attention_mask=mask.long()).logits
    finally:
        hook.remove()
        model.train(was_training)
    return kept[0][mask], logits[mask] if logits.shape[:2] == mask.shape else logits


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding: to 4e-6 of the largest number in float32, 3 % in half."""
    tolerance = min(32 * torch.finfo(expected.dtype).eps, 0.03) * expected.abs().max()
    return bool(((found - expected).abs() <= tolerance).all())
