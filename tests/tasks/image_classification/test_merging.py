"""A merged model is one of timm's own: its folder is loaded by name, with labels and how images are prepared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import nn

import loralight
from loralight.adapters import Lora, merge
from loralight.adapters.base import trainable
from loralight.tasks.image_classification import ImageClassification

from .conftest import random_model

LABELS = ["blue", "green", "red"]
KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct")


def from_folder(folder: Path, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments)
    return model.eval()


def outputs(model: nn.Module, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize(
    ("family", "size"),
    [("test_resnet", None), ("test_efficientnet", 48), ("test_convnext", None), ("test_vit", None), ("test_vit", 48)],
)
def test_timm_loads_the_merged_folder_with_equal_outputs(
    family: str, size: int | None, checkpoints: Callable[[str], str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    task = ImageClassification(
        checkpoint=checkpoints(family), labels=LABELS, image_size=size, adapter=Lora(targets="all", rank=2)
    )
    task.configure_model()
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    task.eval()
    adapted = outputs(task.model, size or 32)
    merge(task.model)
    task.save_pretrained(tmp_path)
    model = from_folder(tmp_path)
    assert torch.equal(outputs(model, size or 32), outputs(task.model, size or 32))
    torch.testing.assert_close(outputs(model, size or 32), adapted, rtol=1e-4, atol=1e-4)
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    assert (model.num_classes, list(config["label_names"])) == (3, LABELS)
    assert tuple(config["input_size"]) == (3, size or 32, size or 32)
    assert [*config["mean"], *config["std"], config["crop_pct"]] == [0.4, 0.5, 0.6, 0.3, 0.2, 0.25, 0.9]


@pytest.fixture
def run(in_process: Callable[..., int], tiny_resnet: str, image_folders: Path, tmp_path: Path) -> Path:
    line = ["task=image_classification", "data=image_classification", f"data.path='{image_folders}'"]
    line += [f"model.checkpoint='{tiny_resnet}'", "trainer=cpu", "trainer.max_epochs=2", "data.batch_size=4"]
    assert in_process("train", *line, "optimizer.lr=3e-3", "hydra.run.dir=run") == 0
    return tmp_path / "run"


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
def test_a_run_is_merged_from_the_command_line(
    folded: bool, run: Path, in_process: Callable[..., int], image_folders: Path, tmp_path: Path
) -> None:
    line = ["merge", "run=run", "output=merged", "device=cpu", f"fold_batch_norm={str(folded).lower()}"]
    assert in_process(*line) == 0
    found = json.loads((tmp_path / "merged" / "merge_certificate.json").read_text())
    assert found["within_tolerance"]
    assert found["metrics"]["merged"] == pytest.approx(found["metrics"]["adapted"], rel=1e-4)
    model = from_folder(tmp_path / "merged")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    identities = [norm for norm in norms if not norm.running_mean.any() and bool((norm.weight == 1).all())]
    assert found["folded_batch_norms"] == len(identities) == (len(norms) if folded else 0)
    config = model.pretrained_cfg
    transform = create_transform(**{key: config[key] for key in KEYS})
    files = sorted(str(file) for file in (image_folders / "test").rglob("*.*"))[:5]
    for answer in loralight.load(run, device="cpu").predict(files):
        with Image.open(answer["file"]) as image, torch.no_grad():
            probabilities = model(transform(image)[None]).softmax(-1)[0].tolist()
        named = dict(zip(config["label_names"], probabilities, strict=True))
        assert named == pytest.approx(answer["probabilities"], abs=1e-5)


def test_in_bfloat16_timm_loads_what_the_certificate_is_about(
    run: Path, in_process: Callable[..., int], tmp_path: Path
) -> None:
    assert in_process("merge", "run=run", "output=merged", "device=cpu", "dtype=bfloat16", "force=true") == 0
    found = json.loads((tmp_path / "merged" / "merge_certificate.json").read_text())
    assert 0 < found["outputs"]["relative_error"] < 0.1
    assert found["update_lost"]["max"] > 1e-3
    model = from_folder(tmp_path / "merged", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_a_merged_folder_is_a_base_model_again(run: Path, in_process: Callable[..., int], tmp_path: Path) -> None:
    assert in_process("merge", "run=run", "output=merged", "device=cpu", "split=null") == 0
    again = ImageClassification(checkpoint="merged", labels=LABELS, adapter=Lora(targets="all", rank=2))
    again.configure_model()
    assert again.fresh(again.model) == set()
    assert torch.equal(outputs(again.eval().model), outputs(from_folder(tmp_path / "merged")))


@pytest.mark.parametrize("labels", [LABELS, list("tuvwxyz")], ids=["other labels", "as many labels"])
@pytest.mark.parametrize("family", ["test_resnet", "test_vit"])
def test_a_folder_that_timm_wrote_is_merged_for_other_labels(family: str, labels: list[str], tmp_path: Path) -> None:
    before = random_model(family)
    about = {"label_names": list("abcdefg"), "label_descriptions": {letter: letter.upper() for letter in "abcdefg"}}
    size = {"img_size": 32} if family == "test_vit" else {}
    settings = {"model_config": about, "model_args": {"num_classes": 7, **size}, "safe_serialization": True}
    timm.models.save_for_hf(before, tmp_path / "before", **settings)
    task = ImageClassification(
        checkpoint=str(tmp_path / "before"), labels=labels, image_size=32, adapter=Lora(targets="all", rank=2)
    )
    task.configure_model()
    merge(task.eval().model)
    (tmp_path / "after").mkdir()
    task.save_pretrained(tmp_path / "after")
    model = from_folder(tmp_path / "after")
    assert torch.equal(outputs(model), outputs(task.model))
    config = json.loads((tmp_path / "after" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (len(labels), labels)
    assert not config.get("label_descriptions") and "label_descriptions" not in config["pretrained_cfg"]
    again = ImageClassification(checkpoint=str(tmp_path / "after"), labels=labels, adapter=Lora(targets="all", rank=2))
    again.configure_model()
    assert again.fresh(again.model) == set()
    assert torch.equal(outputs(again.eval().model), outputs(model))
