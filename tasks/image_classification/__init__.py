"""One label for an image, by any model of timm, such as a ResNet."""

from .data import ImageClassificationData
from .module import ImageClassification

__all__ = ["ImageClassification", "ImageClassificationData"]
