"""Tiny models of timm with random weights, and small folders of images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}
CLASSES = 7  # of the tiny models


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of one of timm's architectures with random weights for 7 classes, made when first asked for."""
    parent = tmp_path_factory.mktemp("timm")

    def folder(architecture: str) -> str:
        path = parent / architecture
        if not path.exists():
            path.mkdir()
            save_file(random_model(architecture).state_dict(), path / "model.safetensors")
            config = {"architecture": architecture, "num_classes": CLASSES, "input_size": [3, 32, 32], "epochs": 3}
            config |= {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25], "interpolation": "bilinear", "crop_pct": 0.9}
            (path / "config.json").write_text(json.dumps(config))
        return str(path)

    return folder


def random_model(architecture: str, num_classes: int = CLASSES) -> nn.Module:
    """A model as if it were trained: every part counts, and BatchNorm has statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"img_size": 32} if "vit" in architecture else {}
        model: nn.Module = timm.create_model(architecture, num_classes=num_classes, **size)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and name.endswith("weight"):  # timm begins with residual branches of zero
                    parameter.uniform_(0.5, 1.5)
            for _ in range(3):
                model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_resnet(checkpoints: Callable[[str], str]) -> str:
    """The folder of a ResNet of four small stages."""
    return checkpoints("test_resnet")


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (3 x 8 images), validation and test (3 x 4): noisy ones of one colour each, by its name."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, count in {"train": 8, "validation": 4, "test": 4}.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = random.normal(0, 25, (36, 40 + number, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder
