"""A text classifier's last block, computed only for the first token of each row, which the head reads.

Keys and values need all tokens. The query and the layers after attention, five sixths of the block's matrix products,
need only the first.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loralight.acceleration.base import Acceleration, Facts
from loralight.acceleration.lines import stack_of
from loralight.acceleration.prefix_cache import is_cached
from loralight.acceleration.ragged import ALL_TOKENS, AllTokens, Ragged
from loralight.acceleration.unpadding import SHORT_ROWS, is_same, is_unpadded, outputs_of_short_rows

_OF_ALL = {"key", "value", "k_lin", "v_lin", "k_proj", "v_proj"}  # transformers' names of key and value layers


class FirstTokens(Acceleration):
    """The last block of an unpadded model computes only first tokens, if the head reads no others.

    The rest of the encoder's output is NaN, so that code that reads it notices.
    """

    needs_whole_weights = False

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []

    def attach_(self, facts: Facts) -> str | None:
        model = facts.model
        if not isinstance(model, PreTrainedModel) or not is_unpadded(model):
            return "it needs a model that leaves out padding"
        _, expected = outputs_of_short_rows(model, whole=True)
        if len(expected) != SHORT_ROWS:  # the shape tells: a model without weights has no values
            return "the head reads every token"
        stack = stack_of(model)
        assert stack is not None
        block = stack.blocks[-1]
        self._hooks = [
            block.register_forward_pre_hook(_give_firsts, with_kwargs=True),
            block.register_forward_hook(_let_go, always_call=True),
        ]
        for layer in _layers_of_all(block):
            self._hooks += [layer.register_forward_pre_hook(_take_all), layer.register_forward_hook(_keep_all)]
        try:
            if is_same(outputs_of_short_rows(model)[1], expected):
                return None
            reason = "the head reads other tokens too"
        except (RuntimeError, ValueError, TypeError, LookupError) as error:  # its blocks are of another form
            reason = f"its last block takes no first tokens alone: {' '.join(str(error).split())[:200]}"
        self.detach_(model)
        return reason

    def detach_(self, model: nn.Module) -> None:
        for hook in self._hooks:
            hook.remove()


def _give_firsts(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give a block the first token of each row, but give the layers of its keys and values all tokens."""
    ragged = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
    is_recomputed = getattr(block, "gradient_checkpointing", False) and block.training  # which skips hooks
    layers = _layers_of_all(block)
    is_other = any(_take_all not in layer._forward_pre_hooks.values() for layer in layers)  # a layer was replaced since
    if ragged is None or is_recomputed or is_other or is_cached(block):
        return None
    states, *others = args
    ALL_TOKENS.set(AllTokens(ragged, layers, states, []))
    return (states[:, ragged.firsts], *others), kwargs


def _layers_of_all(block: nn.Module) -> set[nn.Module]:
    """A block's layers of keys and values, which take all tokens while the block is given only first tokens."""
    return {part for name, part in block.named_modules() if name.rpartition(".")[2] in _OF_ALL}


def _take_all(layer: nn.Module, _: Any) -> Any:
    """Look up this thread's work: other threads may be in the same layer."""
    all_tokens = _all_tokens_of(layer)
    return None if all_tokens is None else (all_tokens.states,)


def _keep_all(layer: nn.Module, _: Any, made: Tensor) -> Tensor | None:
    """Keep the tokens that attention needs, and give the block's code a tensor of the shape that it expects."""
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
