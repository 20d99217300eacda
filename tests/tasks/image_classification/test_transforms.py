"""Images are prepared as by hand; what is random in training is a function of a seed alone."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loralight.errors import InputError
from loralight.tasks.image_classification.transforms import evaluation_transform, seeded, training_transform

PREPARATION = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.3, 0.2, 0.25),
    "crop_pct": 0.8,
    "crop_mode": "center",
}
NOTHING: dict[str, Any] = {
    "crop_scale": [1.0, 1.0],
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "color_jitter": 0.0,
    "auto_augment": None,
    "random_erasing": 0.0,
}
ALL: dict[str, Any] = {
    "crop_scale": [0.3, 1.0],
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "color_jitter": 0.4,
    "auto_augment": "rand-m7-n2-mstd0.5",
    "random_erasing": 0.5,
}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8))


def normalised(image: Image.Image) -> Tensor:
    pixels = torch.tensor(np.asarray(image)) / 255
    return ((pixels - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.3, 0.2, 0.25])).permute(2, 0, 1)


def test_in_evaluation_an_image_is_resized_cropped_and_normalised() -> None:
    by_hand = IMAGE.resize((64, 40), Image.Resampling.BILINEAR).crop((16, 4, 48, 36))  # 32 / 0.8 = 40
    torch.testing.assert_close(evaluation_transform(PREPARATION)(IMAGE), normalised(by_hand))


def test_without_random_changes_training_sees_the_whole_of_a_square_image() -> None:
    square = IMAGE.crop((0, 0, 50, 50))
    by_hand = square.resize((32, 32), Image.Resampling.BILINEAR)
    torch.testing.assert_close(training_transform(PREPARATION, **NOTHING)(square), normalised(by_hand))


@pytest.mark.parametrize(("flip", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_a_flip_mirrors_the_image(flip: str, axis: int) -> None:
    square = IMAGE.crop((0, 0, 32, 32))
    flipped = training_transform(PREPARATION, **{**NOTHING, flip: 1.0})(square)
    torch.testing.assert_close(flipped, normalised(square).flip(axis))


@pytest.mark.parametrize("change", [*ALL, "all"])
def test_a_seed_decides_all_that_is_random(change: str) -> None:
    transform = training_transform(PREPARATION, **(ALL if change == "all" else {**NOTHING, change: ALL[change]}))

    def made(seed: int) -> Tensor:
        with seeded(seed):
            return transform(IMAGE)

    seen = [made(seed) for seed in range(8)]
    assert any(not torch.equal(seen[0], other) for other in seen[1:])
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    assert all(torch.equal(made(seed), seen[seed]) for seed in reversed(range(8)))


def test_the_global_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def drawn(*, within: bool) -> tuple[float, float, float]:
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if within:
            with seeded(5):
                torch.rand(9), np.random.rand(9), random.random()
        return float(torch.rand(())), np.random.rand(), random.random()

    assert drawn(within=True) == drawn(within=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_scale": [0.5]}, r"data\.crop_scale=\[0\.5\]: give two shares"),
        ({"crop_scale": [0.9, 0.5]}, r"data\.crop_scale=\[0\.9, 0\.5\]"),
        ({"crop_scale": [0.0, 1.0]}, r"data\.crop_scale=\[0\.0, 1\.0\]"),
        ({"crop_scale": [0.5, 2.0]}, r"data\.crop_scale=\[0\.5, 2\.0\]"),
        ({"horizontal_flip": 1.5}, r"data\.horizontal_flip=1\.5: give a number from 0 to 1"),
        ({"random_erasing": -0.1}, r"data\.random_erasing=-0\.1"),
        ({"color_jitter": 2.0}, r"data\.color_jitter=2\.0"),
        ({"auto_augment": "sideways"}, r"data\.auto_augment=sideways: timm knows no such policy"),
        ({"auto_augment": "rand-m7-x"}, r"data\.auto_augment=rand-m7-x: 'x' is no part of a policy"),
        ({"auto_augment": "augmix-mm-w3"}, r"data\.auto_augment=augmix-mm-w3: 'mm' is no part of a policy"),
        ({"auto_augment": "rand-q7"}, r"data\.auto_augment=rand-q7: timm knows no such policy"),
    ],
)
def test_changes_that_make_no_sense_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^E-AUGMENT: {message}"):
        training_transform(PREPARATION, **{**NOTHING, **change})
