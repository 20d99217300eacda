"""A text classifier's last block, computed of what its head reads: the first token of each row.

Keys and values need all tokens; the query and what comes after attention, five sixths of the block's products, need the
first.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loralight.adapters.blocks import blocks
from loralight.ragged import Ragged
from loralight.unpadding import encoder_of, is_same, is_unpadded, outputs_of_short_rows

_OF_ALL = {"key", "value", "k_lin", "v_lin", "k_proj", "v_proj"}  # what transformers calls layers of keys and values
_handles: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()  # of a block, while it computes


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
    parts = [part for name, part in block.named_modules() if name.rpartition(".")[2] in _OF_ALL]
    states, *others = args
    _handles[block] = [handle for part in parts for handle in _compute_on_all(part, states, ragged)]
    return (states[:, ragged.firsts], *others), kwargs


def _compute_on_all(part: nn.Module, states: Tensor, ragged: Ragged) -> list[RemovableHandle]:
    """Have a layer of keys or values take all tokens, whatever it is given; `_attend` finds what it makes of them."""

    def keep(_: nn.Module, given: Any, made: Tensor) -> Tensor:
        ragged.of_all.append(made)
        return made[:, ragged.firsts]

    return [part.register_forward_pre_hook(lambda *_: (states,)), part.register_forward_hook(keep)]


def _let_go(block: nn.Module, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        for handle in _handles.pop(block, ()):
            handle.remove()
