"""Mixup and CutMix: training on blends of two images, with both labels."""

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from loralight.errors import InputError

from .transforms import seeded


class Mixing:
    """Blends each image of a batch with another: half of all batches by Mixup, half by CutMix, if both are on.

    Zhang et al., 2017, https://arxiv.org/abs/1710.09412; Yun et al., 2019, https://arxiv.org/abs/1905.04899. This uses
    timm, which pairs the first row with the last and so on. With an odd number of rows, the last row is not blended.

    Args:
        mixup: both parameters of the Beta distribution of the other image's share; 0 for no Mixup.
        cutmix: both parameters of the Beta distribution of the other image's pasted area; 0 for no CutMix.
        label_smoothing: share of the target that is spread over all labels.
        num_labels: number of labels.

    Raises:
        InputError: a value makes no sense (``E-AUGMENT``).
    """

    def __init__(self, *, mixup: float, cutmix: float, label_smoothing: float, num_labels: int) -> None:
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value < 0:
                raise InputError("E-AUGMENT", f"task.{name}={value}: give 0 for none, or a positive number such as 0.2")
        self.num_labels, self.label_smoothing = num_labels, label_smoothing
        self._mix = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=num_labels
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The blended batch, which depends on torch's random state.

        Args:
            images: (batch, channels, height, width); not changed in place.
            labels: (batch,).

        Returns:
            Images, and the share of every label in each row: (batch, labels).
        """
        even = len(labels) // 2 * 2
        with seeded(int(torch.randint(2**62, ()))):  # timm draws from NumPy's generator, which no step seeds
            mixed, targets = self._mix(images[:even].clone(), labels[:even])
        smoothing = self.label_smoothing
        rest = mixup_target(labels[even:], self.num_labels, smoothing=smoothing)  # type: ignore[no-untyped-call]
        return torch.cat([mixed, images[even:]]), torch.cat([targets, rest])
