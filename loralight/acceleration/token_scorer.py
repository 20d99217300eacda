"""Scores of a language model's tokens; only the tokens that are learnt go through the output layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.kernels import TokenScores, plain_token_scores, token_scores


class TokenScorer:
    """Scores the tokens that a causal language model learns; for one model, as a hook stays on its output layer.

    Where the logits come straight from a frozen output layer, they are computed in parts (`token_scores`), and the
    model itself computes the logits of one token only.
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
            inputs: the model's inputs: input_ids (batch, tokens), ...
            learnt: whether a token's successor is learnt, (batch, tokens).
            targets: the successors that are learnt, row by row: (learnt,).
        """
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        by_parts = self.logits_are_plain is not False and type(output) is nn.Linear and not output.weight.requires_grad
        is_tried = by_parts and self.logits_are_plain is None
        loud = _loud(output) if is_tried else None
        with self._states.of(output, learnt, one=by_parts, instead=loud) as given:
            # with a cache, transformers would let packed documents see one another
            logits = model(**inputs, use_cache=False).logits
        if not given:  # ProphetNet's output layer takes several states for each token
            return plain_token_scores(logits[learnt], targets)
        if not by_parts:
            return plain_token_scores(logits.squeeze(0), targets)
        if loud is not None and len(targets):
            # Gemma caps its logits, Granite scales them
            self.logits_are_plain = torch.allclose(logits.squeeze(0), output(loud.to(given[0].dtype)))
            if not self.logits_are_plain:
                return self(model, inputs, learnt, targets)
        return token_scores(given[0], targets, output.weight, output.bias)


@torch.no_grad()
def _loud(output: nn.Linear) -> Tensor:
    """A state (1, width) whose largest logit is 100; small logits, or a padding token's, would show no cap or scale."""
    direction = torch.linspace(-1, 1, output.in_features, dtype=output.weight.dtype, device=output.weight.device)
    return (direction * (100 / F.linear(direction, output.weight).abs().amax().clamp(min=1e-3))).unsqueeze(0)


class _GivenStates:
    """The inputs of an output layer at the wanted tokens.

    The layer itself is handed all of them, the first of them alone, or another state. The hook stays on the layer: a
    compiled model would be compiled anew for each new hook.
    """

    def __init__(self) -> None:
        self._layer: nn.Module | None = None
        self._wanted: Tensor | None = None
        self._one = False
        self._instead: Tensor | None = None
        self._given: list[Tensor] = []

    @contextmanager
    def of(
        self, layer: nn.Module, wanted: Tensor, *, one: bool, instead: Tensor | None = None
    ) -> Iterator[list[Tensor]]:
        """A context in which passes through ``layer`` append its wanted inputs to a list, each (wanted, width).

        Args:
            layer: the output layer.
            wanted: which tokens, (batch, tokens).
            one: whether to hand the layer only the first of them.
            instead: a state (1, width) to hand to the layer instead.
        """
        if layer is not self._layer:
            layer.register_forward_pre_hook(self._find)
            self._layer = layer
        self._wanted, self._one, self._instead, self._given = wanted, one, instead, []
        try:
            yield self._given
        finally:
            self._wanted, self._given = None, []

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _find(self, layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if self._wanted is None or arguments[0].shape[:-1] != self._wanted.shape:
            return None
        states = arguments[0][self._wanted]
        self._given.append(states)
        if self._instead is not None and len(states):
            loud = states[:1] * 0 + self._instead.to(states.dtype)  # to a compiler it depends on the states
            return (loud.unsqueeze(0),)
        return ((states[:1] if self._one else states).unsqueeze(0),)
