"""A text classifier's last block, computed of what its head reads: the first token of each row.

Keys and values need all tokens; the query and what comes after attention, five sixths of the block's products, need the
first.
"""

from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.acceleration.ragged import ALL_TOKENS, AllTokens, Ragged
from loralight.acceleration.unpadding import encoder_of, is_same, is_unpadded, outputs_of_short_rows
from loralight.models.blocks import blocks

_OF_ALL = {"key", "value", "k_lin", "v_lin", "k_proj", "v_proj"}  # what transformers calls layers of keys and values
_REGISTERING = Lock()


def read_first_(model: PreTrainedModel) -> bool:
    """Have the last block of an unpadded ``model`` compute first tokens alone, if its head reads no others.

    All else in what the encoder returns is NaN: whoever reads it is to notice.

    Returns:
        Whether that leaves the logits what they are.
    """
    encoder = encoder_of(model)
    if encoder is None or not is_unpadded(model):
        return False
    block = list(blocks(dict(encoder.named_modules())).values())[-1]
    hooks = [
        block.register_forward_pre_hook(_give_firsts, with_kwargs=True),
        block.register_forward_hook(_let_go, always_call=True),
    ]
    _, expected = outputs_of_short_rows(model, whole=True)
    try:
        if is_same(outputs_of_short_rows(model)[1], expected):
            return True
    except (RuntimeError, ValueError, TypeError, LookupError):  # its blocks are of another form
        pass
    for hook in hooks:
        hook.remove()
    return False


def _give_firsts(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give a block the first token of each row, but its keys and values all of them."""
    ragged = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
    is_recomputed = getattr(block, "gradient_checkpointing", False) and block.training  # which passes hooks by
    is_cached = "forward" in vars(block)  # with all of its outputs
    if ragged is None or is_recomputed or is_cached:
        return None
    layers = {part for name, part in block.named_modules() if name.rpartition(".")[2] in _OF_ALL}
    for layer in layers:
        _compute_on_all_(layer)
    states, *others = args
    ALL_TOKENS.set(AllTokens(ragged, layers, states, []))
    return (states[:, ragged.firsts], *others), kwargs


def _compute_on_all_(layer: nn.Module) -> None:
    """Have a layer of keys or values take all tokens while its block is given the first ones.

    The hooks stay, and find by thread what they are to do: others may be in the same layer. They come with a pass and
    not with `read_first_`, since an adapter may put a layer of its own in the place of this one, around it even.
    """
    with _REGISTERING:
        if _take_all not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_take_all)
            layer.register_forward_hook(_keep_all)


def _take_all(layer: nn.Module, _: Any) -> Any:
    all_tokens = _all_tokens_of(layer)
    return None if all_tokens is None else (all_tokens.states,)


def _keep_all(layer: nn.Module, _: Any, made: Tensor) -> Tensor | None:
    """Keep what attention needs, and give the block's code a tensor of the shape that it expects."""
    all_tokens = _all_tokens_of(layer)
    if all_tokens is None:
        return None
    all_tokens.made.append(made)
    return made[:, all_tokens.rows.firsts]


def _all_tokens_of(layer: nn.Module) -> AllTokens | None:
    all_tokens = None if torch.compiler.is_compiling() else ALL_TOKENS.get()
    return all_tokens if all_tokens is not None and layer in all_tokens.layers else None


def _let_go(block: nn.Module, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        ALL_TOKENS.set(None)
