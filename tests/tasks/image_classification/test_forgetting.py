"""What a pretrained image model knows of its own classes is measured by the classifier that it came with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from loralight.adapters import Lora
from loralight.errors import InputError
from loralight.tasks.image_classification.forgetting import OwnClasses
from loralight.tasks.image_classification.module import ImageClassification

from .conftest import CLASSES, random_model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        folder = tmp_path / "pictures" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext"])
def test_the_base_s_own_classes_are_those_of_timm(
    architecture: str, checkpoints: Callable[[str], str], pictures: Path
) -> None:
    task = ImageClassification(checkpoint=checkpoints(architecture), labels=["a", "b"], adapter=Lora(targets="all"))
    task.configure_model()
    probe = OwnClasses(images=str(pictures), labels=[f"class{number}" for number in range(CLASSES)])
    probe.prepare(task)
    with torch.no_grad(), task.unaccelerated():
        base = probe.measure(task, None)
        assert torch.equal(base.outputs, random_model(architecture).eval()(torch.cat(probe._images)))
        assert base.scores["agreement"] == 1
        for name, tensor in task.trainable_tensors().items():
            tensor.add_(torch.randn_like(tensor) if "lora_B" in name else 0.0)
        moved = probe.measure(task, base.outputs)
    answers = moved.outputs.argmax(-1)
    right = torch.tensor([int(file.parent.name.removeprefix("class")) for file in probe.files])
    assert moved.scores["accuracy"] == pytest.approx(float((answers == right).float().mean()))
    assert moved.scores["agreement"] == pytest.approx(float((answers == base.outputs.argmax(-1)).float().mean()))
    assert moved.scores["agreement"] < 1


def test_wrong_settings_are_told(checkpoints: Callable[[str], str], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"E-FORGETTING: forgetting.images=.*there is no image"):
        OwnClasses(images=str(tmp_path / "gone"))
    with pytest.raises(InputError, match="is in a folder class0, which is none of"):
        OwnClasses(images=str(pictures), labels=["cat"])
    task = ImageClassification(checkpoint=checkpoints("test_resnet"), labels=["a"], adapter=Lora(targets="all"))
    with pytest.raises(InputError, match=r"test_resnet: its weights have 7 classes, and forgetting.labels has 8"):
        OwnClasses(images=str(pictures), labels=[f"class{number}" for number in range(8)]).prepare(task)
