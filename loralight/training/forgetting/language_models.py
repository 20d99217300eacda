"""What a base model knows of language: its loss on general texts, by the head that it was pretrained with."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from loralight.errors import InputError
from loralight.models.pretrained import check_causal
from loralight.training.forgetting.own_head import checkpoint_of, with_own_head
from loralight.training.forgetting.probe import ForgettingProbe, Measured
from loralight.training.forgetting.texts import Texts
from loralight.training.task import AdapterTask

_SHARE = 0.15  # of a text's tokens


class LanguageModelLoss(ForgettingProbe):
    """The mean loss of a token given those before it, by a causal language model.

    Args:
        texts: a file with a text a line, or with a column ``text``.
        rows: most texts that are read.
        max_length: tokens of a text that are read.
    """

    def __init__(self, *, texts: str, rows: int = 100, max_length: int = 128) -> None:
        self.texts = Texts(texts, rows=rows, max_length=max_length)

    def prepare(self, task: AdapterTask) -> None:
        check_causal(checkpoint_of(task))
        self._model = task.model if _is_causal(task.model) else with_own_head(AutoModelForCausalLM, task)
        self._ids, _ = self.texts.token_ids(task)

    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        return _measured([_losses(self._model, ids[:, :-1], ids[0, 1:]) for ids in self._ids])


class MaskedLanguageModelLoss(ForgettingProbe):
    """The mean loss of a masked token given all others, by an encoder (Devlin et al., 2018,
    https://arxiv.org/abs/1810.04805).

    Of each text 15 % of the tokens are masked, always the same ones; all by the mask, where training also puts other
    words in place of some.

    Args:
        texts: a file with a text a line, or with a column ``text``.
        rows: most texts that are read.
        max_length: tokens of a text that are read.
    """  # noqa: D205

    def __init__(self, *, texts: str, rows: int = 100, max_length: int = 128) -> None:
        self.texts = Texts(texts, rows=rows, max_length=max_length)

    def prepare(self, task: AdapterTask) -> None:
        self._model = with_own_head(AutoModelForMaskedLM, task)
        self._ids, tokenizer = self.texts.token_ids(task)
        if tokenizer.mask_token_id is None:
            raise InputError("E-FORGETTING", f"{checkpoint_of(task)}: its tokenizer has no token for a mask")
        self._mask, special = int(tokenizer.mask_token_id), {*tokenizer.all_special_ids}
        self._places = [_places(ids[0], special, number) for number, ids in enumerate(self._ids)]

    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        pairs = zip(self._ids, self._places, strict=True)
        return _measured([self._losses(ids, places) for ids, places in pairs if len(places)])

    def _losses(self, ids: Tensor, places: Tensor) -> Tensor:
        masked = ids.index_fill(1, places, self._mask)
        return _losses(self._model, masked, ids[0, places], places)


def _is_causal(model: nn.Module) -> bool:
    """Whether a model is a causal language model already, as that of text generation is."""
    assert isinstance(model, PreTrainedModel)
    of_config: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    return type(model) is of_config


def _losses(model: nn.Module, ids: Tensor, targets: Tensor, places: Tensor | None = None) -> Tensor:
    """The losses (targets,) at ``places`` of a text (1, tokens), or at all of its tokens."""
    logits = model(input_ids=ids).logits[0]
    return F.cross_entropy((logits if places is None else logits[places]).float(), targets, reduction="none")


def _measured(losses: list[Tensor]) -> Measured:
    outputs = torch.cat(losses) if losses else torch.empty(0)
    return Measured(scores={"loss": float(outputs.mean())}, outputs=outputs)


def _places(ids: Tensor, special: set[int], number: int) -> Tensor:
    """The places in a text (tokens,) to mask; the text's number draws them."""
    possible = [place for place, token in enumerate(ids.tolist()) if token not in special]
    count = min(len(possible), max(1, round(_SHARE * len(possible))))
    drawn: list[int] = np.random.default_rng([0, number]).permutation(possible)[:count].tolist()
    return torch.tensor(sorted(drawn), dtype=torch.long, device=ids.device)
