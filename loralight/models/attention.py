"""The function that computes a transformers model's attention: PyTorch's, or one of ours in its place.

No model's code is replaced: transformers looks up the function by a name in the model's config. All code that deals
with this name is here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PLAIN = "sdpa"
"""PyTorch's function, as transformers calls it."""

_LENT = "loralight_lent"
AttentionMaskInterface.register(_LENT, sdpa_mask)


def attention_of(model: PreTrainedModel) -> str:
    """The name by which transformers looks up a model's attention function."""
    return str(model.config._attn_implementation)


class Attention:
    """An attention function that can take the place of PyTorch's.

    Args:
        name: unique among these functions.
        function: in the form that transformers calls.
        mask: the function that makes its mask, in the form that transformers calls.
    """

    def __init__(self, name: str, function: Callable[..., Any], mask: Callable[..., Any]) -> None:
        self._name = f"loralight_{name}"
        AttentionInterface.register(self._name, function)
        AttentionMaskInterface.register(self._name, mask)

    def is_of(self, model: PreTrainedModel) -> bool:
        """Whether ``model`` attends by this function."""
        return attention_of(model) == self._name

    def why_not(self, model: PreTrainedModel) -> str | None:
        """The reason why it cannot replace the function that ``model`` has; None if it can."""
        found, base = attention_of(model), cast("PreTrainedModel", model.base_model)
        if found == PLAIN and not base._can_set_attn_implementation():  # which else would only warn
            return "transformers lets no function take the place of its attention"
        return None if found == PLAIN else f"its attention is {found!r}, not {PLAIN!r}"

    def take_place_in_(self, model: PreTrainedModel) -> None:
        """Let ``model`` attend by this function."""
        model.set_attn_implementation(self._name)

    def leave_(self, model: PreTrainedModel) -> None:
        """Let ``model`` attend by PyTorch's function again."""
        model.set_attn_implementation(PLAIN)


@contextmanager
def attending_by(model: PreTrainedModel, function: Callable[..., Any]) -> Iterator[None]:
    """A context in which ``model`` attends by ``function``; afterwards it has its own function back."""
    before = attention_of(model)
    ALL_ATTENTION_FUNCTIONS[_LENT] = function
    try:
        model.set_attn_implementation(_LENT)
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_LENT]  # type: ignore[no-untyped-call]
        model.set_attn_implementation(before)
