"""How far the features of general texts have moved from the base model's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from loralight.errors import InputError
from loralight.training.forgetting.own_head import checkpoint_of
from loralight.training.forgetting.probe import ForgettingProbe, Measured
from loralight.training.forgetting.texts import Texts
from loralight.training.task import AdapterTask


class FeatureDrift(ForgettingProbe):
    """The likeness of features before and after, for encoders and decoders that have no head of their own.

    A text's features are the mean of its tokens' last hidden states. ``cosine`` is the mean cosine of a text's features
    before and after; ``cka`` is linear centred kernel alignment (Kornblith et al., 2019,
    https://arxiv.org/abs/1905.00414), which a rotation of all features leaves at 1. Both are 1 if nothing has moved.

    Args:
        texts: a file with a text a line, or with a column ``text``.
        rows: most texts that are read.
        max_length: tokens of a text that are read.
    """

    def __init__(self, *, texts: str, rows: int = 100, max_length: int = 128) -> None:
        self.texts = Texts(texts, rows=rows, max_length=max_length)

    def prepare(self, task: AdapterTask) -> None:
        checkpoint = checkpoint_of(task)
        config = task.model.config
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                "E-FORGETTING", f"{checkpoint} is an encoder with a decoder, of which this probe reads neither alone"
            )
        self._ids, _ = self.texts.token_ids(task)

    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        layers: torch.nn.Module = task.model.base_model  # type: ignore[assignment]
        features = torch.cat([layers(input_ids=ids).last_hidden_state.float().mean(1) for ids in self._ids])
        before = features if base is None else base
        cosine = float(F.cosine_similarity(before, features).mean())
        return Measured(scores={"cosine": cosine, "cka": cka(before, features)}, outputs=features)


def cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of features (rows, width) of the same rows; nan for a single row."""
    centred = [(features - features.mean(0)).double() for features in (one, other)]
    likeness = [features @ features.T for features in centred]  # (rows, rows), as rows are fewer than a width squared
    return float((likeness[0] * likeness[1]).sum() / (likeness[0].norm() * likeness[1].norm()))
