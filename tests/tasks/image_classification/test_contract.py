from pathlib import Path

import pytest

from loralight.testing import TaskContract

SMALL = ["task=image_classification", "data=image_classification", "data.batch_size=4", "optimizer.lr=3e-3"]


class _OnColours(TaskContract, overrides=SMALL):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def places(cls, tiny_resnet: str, image_folders: Path) -> None:
        cls.overrides = [*cls.overrides, f"model.checkpoint='{tiny_resnet}'", f"data.path='{image_folders}'"]


class TestImageClassification(_OnColours): ...


class TestWithAllThatIsRandom(
    _OnColours,
    overrides=[
        "data.auto_augment=rand-m7-n2",
        "data.random_erasing=0.3",
        "task.mixup=0.2",
        "task.cutmix=1.0",
        "task.label_smoothing=0.1",
        "task.batch_norm=statistics",
    ],
): ...
