"""From images to a model's inputs: in evaluation as the model's authors do, in training with random changes."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL.Image import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from loralight.errors import InputError

Transform = Callable[[Image], Tensor]
"""An image to pixels, (channels, height, width)."""


def evaluation_transform(preparation: Mapping[str, Any]) -> Transform:
    """Resize, crop the centre, normalise.

    Args:
        preparation: timm's data config, as `Backbone.preparation` gives it.

    Raises:
        InputError: timm cannot prepare images in this way (``E-MODEL``).
    """
    try:
        transform: Transform = create_transform(**preparation)
    except Exception as error:  # of values from a model's config.json
        raise InputError("E-MODEL", f"the model's config prepares images as timm cannot: {error!r:.200}") from error
    return transform


def training_transform(
    preparation: Mapping[str, Any],
    *,
    crop_scale: Sequence[float],
    horizontal_flip: float,
    vertical_flip: float,
    color_jitter: float,
    auto_augment: str | None,
    random_erasing: float,
) -> Transform:
    """Random crops, flips and the other requested changes; all draw from the global generators, see `seeded`.

    Args:
        preparation: timm's data config.
        crop_scale: least and greatest share of the image's area in a crop; [1, 1] crops nothing.
        horizontal_flip: probability.
        vertical_flip: probability.
        color_jitter: how much brightness, contrast and saturation change, 0 to 1.
        auto_augment: timm's name of a policy: ``rand-m7-n2`` (RandAugment, Cubuk et al., 2019,
            https://arxiv.org/abs/1909.13719), ``augmix-m3-w3``, ``original``, ...
        random_erasing: probability that a box is blanked (Zhong et al., 2017, https://arxiv.org/abs/1708.04896).

    Raises:
        InputError: a value makes no sense (``E-AUGMENT``).
    """
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(
            "E-AUGMENT", f"data.crop_scale={list(crop_scale)}: give two shares of the area, such as [0.5, 1.0]"
        )
    shares = {"horizontal_flip": horizontal_flip, "vertical_flip": vertical_flip, "color_jitter": color_jitter}
    for name, share in {**shares, "random_erasing": random_erasing}.items():
        if not 0 <= share <= 1:
            raise InputError("E-AUGMENT", f"data.{name}={share}: give a number from 0 to 1")
    if auto_augment is not None and (odd := _unread(auto_augment)):
        raise InputError(
            "E-AUGMENT", f"data.auto_augment={auto_augment}: {odd!r} is no part of a policy; m7 is, for magnitude 7"
        )
    try:
        transform: Transform = create_transform(
            **preparation,
            is_training=True,
            scale=(crop_scale[0], crop_scale[1]),
            hflip=horizontal_flip,
            vflip=vertical_flip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            re_prob=random_erasing,
        )
    except (AssertionError, ValueError, KeyError, AttributeError) as error:  # timm's, of a policy it cannot read
        raise InputError(
            "E-AUGMENT",
            f"data.auto_augment={auto_augment}: timm knows no such policy ({str(error) or type(error).__name__}); give "
            "a policy such as rand-m7-n2, augmix-m3-w3 or original, or null",
        ) from error
    return transform


def _unread(policy: str) -> str | None:
    """A part of a policy that timm would silently ignore, since it has no number."""
    name, *parts = policy.split("-")
    takes_names = name.startswith("rand")  # of transforms, such as t0 or tRotate/Sharpness
    return next((p for p in parts if not re.match("[a-z]+[0-9]", p) and not (takes_names and p.startswith("t"))), None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context that seeds the global generators of torch, NumPy and Python.

    Their states are restored at the end; this takes 0.1 ms each time.
    """
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
