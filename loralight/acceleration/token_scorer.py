"""The scores of a language model's tokens, of which no more go through the output layer than are learnt."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.kernels import TokenScores, plain_token_scores, token_scores


class TokenScorer:
    """Scores the tokens that a causal language model learns; for one model, as a hook stays on its output layer.

    Where its logits come straight from a frozen output layer, they are computed in parts (`token_scores`): the
    model itself makes those of one token.
    """

    def __init__(self) -> None:
        self.logits_are_plain: bool | None = None  # not known before the first batch
        self._states = _GivenStates()

    def __call__(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], learnt: Tensor, targets: Tensor
    ) -> TokenScores:
        """The scores of the tokens that follow those in ``learnt``.

        Args:
            model: the language model.
            inputs: of the model: input_ids (batch, tokens), ...
            learnt: whether a token's successor is learnt, (batch, tokens).
            targets: these successors, row by row: (learnt,).
        """
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        by_parts = self.logits_are_plain is not False and type(output) is nn.Linear and not output.weight.requires_grad
        with self._states.of(output, learnt, one=by_parts) as given:
            # with a cache, transformers would let packed documents see one another
            logits = model(**inputs, use_cache=False).logits.squeeze(0)
        if not by_parts:
            return plain_token_scores(logits, targets)
        if self.logits_are_plain is None and len(targets):
            # Gemma caps its logits, Granite scales them
            self.logits_are_plain = torch.allclose(logits, output(given[0][:1]))
            if not self.logits_are_plain:
                return self(model, inputs, learnt, targets)
        return token_scores(given[0], targets, output.weight, output.bias)


class _GivenStates:
    """The inputs of an output layer at the wanted tokens; the layer itself is handed all tokens, or only one.

    The hook stays on the layer: a compiled model would be compiled anew for each new one.
    """

    def __init__(self) -> None:
        self._layer: nn.Module | None = None
        self._wanted: Tensor | None = None
        self._one = False
        self._given: list[Tensor] = []

    @contextmanager
    def of(self, layer: nn.Module, wanted: Tensor, *, one: bool) -> Iterator[list[Tensor]]:
        """A context in which passes through ``layer`` append its wanted inputs to a list, each (wanted, width)."""
        if layer is not self._layer:
            layer.register_forward_pre_hook(self._find)
            self._layer = layer
        self._wanted, self._one, self._given = wanted, one, []
        try:
            yield self._given
        finally:
            self._wanted, self._given = None, []

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _find(self, layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if self._wanted is None:
            return None
        states = arguments[0][self._wanted]
        self._given.append(states)
        return ((states[:1] if self._one else states).unsqueeze(0),)
