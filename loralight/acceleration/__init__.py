"""The same results in less time or memory."""

from loralight.acceleration.base import Acceleration, Accelerations, Facts
from loralight.acceleration.batch_norm import FrozenBatchNorms
from loralight.acceleration.channels_last import ChannelsLast
from loralight.acceleration.dropout import DropoutMasks
from loralight.acceleration.first_tokens import FirstTokens
from loralight.acceleration.frozen_linear import FrozenProducts
from loralight.acceleration.gradient_checkpointing import GradientCheckpointing
from loralight.acceleration.own_attention import attends_in_rows
from loralight.acceleration.packed_documents import Line, keeps_apart, line_of
from loralight.acceleration.prefix_cache import PrefixCache
from loralight.acceleration.ragged import Ragged
from loralight.acceleration.rms_norm import FusedRMSNorms
from loralight.acceleration.selective_recompute import SelectiveRecompute
from loralight.acceleration.token_scorer import TokenScorer
from loralight.acceleration.unpadding import Unpadding

__all__ = [
    "Acceleration",
    "Accelerations",
    "ChannelsLast",
    "DropoutMasks",
    "Facts",
    "FirstTokens",
    "FrozenBatchNorms",
    "FrozenProducts",
    "FusedRMSNorms",
    "GradientCheckpointing",
    "Line",
    "PrefixCache",
    "Ragged",
    "SelectiveRecompute",
    "TokenScorer",
    "Unpadding",
    "attends_in_rows",
    "keeps_apart",
    "line_of",
]
