"""The demo: scikit-learn's handwritten digits, and a small ResNet that was trained on half of the digits."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image
from filelock import FileLock
from PIL import Image as Pillow
from rich import get_console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from loralight.data import hiding_bars
from loralight.errors import InputError
from loralight.logs import logger
from loralight.resources import resolve
from loralight.training import verify, write_folder

from .backbone import find_backbone
from .data import ImageClassificationData, Images
from .transforms import evaluation_transform

_ARCHITECTURE, _KNOWN = "resnet18", 5
_CONFIG = {
    "architecture": _ARCHITECTURE,
    "num_classes": _KNOWN,
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": [0.3, 0.3, 0.3],
    "std": [0.38, 0.38, 0.38],
}


class DigitsDemo(ImageClassificationData):
    """1,797 grey images of 8 x 8 pixels, and a ResNet-18 that knows the digits 0 to 4.

    Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49, as included in scikit-learn. Images and model are made
    once, in half a minute, and kept.

    Args:
        folder: the folder for images and model; ``checkpoint`` may name it too.
        arguments: see `ImageClassificationData`; other data cannot be chosen.

    Raises:
        InputError: other data is named (``E-DATA``).
    """

    def __init__(self, *, folder: str, **arguments: Any) -> None:
        if given := [f"data.{name}={arguments[name]}" for name in ("path", "name", "train") if arguments.get(name)]:
            raise InputError(
                "E-DATA", f"{', '.join(given)}: the demo has its own data; add data=image_classification to take yours"
            )
        super().__init__(**{**arguments, "path": folder})
        self.folder = Path(resolve(folder))

    def load(self) -> dict[str, Images]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):  # one process makes it, others wait
            if not self.folder.exists():
                logger.info(
                    "first run: training the demo's ResNet-18 on the digits 0 to %d, to keep in %s",
                    _KNOWN - 1,
                    self.folder,
                )
                write_folder(self.folder, make_digits)
        verify(self.folder)
        return super().load()


def make_digits(folder: Path, *, num_epochs: int = 4) -> None:
    """Write the digits as ``train``, ``validation`` and ``test.parquet``, and the ResNet in the format of timm's hub.

    Raises:
        InputError: scikit-learn is not installed (``E-PACKAGE``).
    """
    splits = _read_digits()
    with hiding_bars():
        for split, rows in splits.items():
            rows.to_parquet(folder / f"{split}.parquet")
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")
    labels = torch.tensor(splits["train"]["label"])
    known = (labels < _KNOWN).nonzero().flatten()
    with _reproducible():
        model = timm.create_model(_ARCHITECTURE, num_classes=_KNOWN)
        save_file(model.state_dict(), folder / "model.safetensors")
        transform = evaluation_transform(find_backbone(str(folder)).preparation())
        images = torch.stack([transform(image.convert("RGB")) for image in splits["train"].select(known)["image"]])
        _train(model, images, labels[known], num_epochs)
    save_file(model.state_dict(), folder / "model.safetensors")


@contextmanager
def _reproducible() -> Iterator[None]:
    """A context with a seed and a single thread, so that sums do not depend on the machine or its other programs."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(num_threads)


def _read_digits() -> dict[str, Dataset]:
    """The digits: three fifths for training, a fifth each for validation and test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise InputError(
            "E-PACKAGE", 'the demo\'s digits come with scikit-learn: pip install "loralight[demo]"'
        ) from error
    digits = load_digits()
    train, rest = train_test_split(np.arange(len(digits.target)), test_size=0.4, stratify=digits.target, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, stratify=digits.target[rest], random_state=0)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)
    return {
        split: Dataset.from_dict(
            {"image": [Pillow.fromarray(grey[row]) for row in rows], "label": digits.target[rows].tolist()},
            features=features,
        )
        for split, rows in {"train": train, "validation": validation, "test": test}.items()
    }


def _train(model: torch.nn.Module, images: Tensor, labels: Tensor, num_epochs: int) -> None:
    """Train with AdamW and a one-cycle learning rate on images that are shifted by up to three pixels."""
    batches = [batch for _ in range(num_epochs) for batch in torch.split(torch.randperm(len(labels)), 32)]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, len(batches))
    model.train()
    task, hidden = "training the demo's ResNet", not sys.stderr.isatty()
    for batch in track(batches, task, console=get_console(), transient=True, disable=hidden):
        down, right = torch.randint(-3, 4, (2,)).tolist()
        loss = F.cross_entropy(model(images[batch].roll((down, right), (2, 3))), labels[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    model.eval()
