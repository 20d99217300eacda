"""Sequence to sequence: texts from texts, by an encoder with a decoder such as T5."""

from .data import TextToTextData
from .module import SequenceToSequence

__all__ = ["SequenceToSequence", "TextToTextData"]
