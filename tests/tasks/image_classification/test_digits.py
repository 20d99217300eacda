"""The demo makes its digits and its ResNet once, whole, and the ResNet is worth adapting."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, are_progress_bars_disabled
from sklearn.datasets import load_digits

from loralight.errors import InputError
from loralight.models.fresh import watching_origins
from loralight.tasks.image_classification import digits
from loralight.tasks.image_classification.backbone import find_backbone, load_backbone
from loralight.tasks.image_classification.digits import DigitsDemo, make_digits
from loralight.training.checkpoint import write_folder


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes half a minute."""
    monkeypatch.setattr(digits, "_train", lambda *_: None)


def demo(folder: Path) -> DigitsDemo:
    return DigitsDemo(
        folder=str(folder), checkpoint=str(folder), columns={"image": "image", "label": "label"}, length_grouped=False
    )


def shown(folder: Path, split: str) -> tuple[Any, list[int]]:
    rows = Dataset.from_parquet(str(folder / f"{split}.parquet"))
    return np.stack([np.asarray(image) for image in rows["image"]]), rows["label"]


@pytest.mark.usefixtures("untrained")
def test_the_digits_are_scikit_learn_s_each_in_one_split(tmp_path: Path) -> None:
    make_digits(tmp_path)
    assert not are_progress_bars_disabled(), "for whoever uses datasets beside"
    splits = [shown(tmp_path, split) for split in ("train", "validation", "test")]
    assert [len(labels) for _, labels in splits] == [1078, 359, 360]
    found = sorted(
        (label, (image * (16 / 255)).round().astype(int).tobytes())
        for images, labels in splits
        for image, label in zip(images, labels, strict=True)
    )
    theirs = load_digits()
    assert found == sorted(
        (label, image.astype(int).tobytes()) for image, label in zip(theirs.images, theirs.target, strict=True)
    )
    for _, labels in splits:
        shares = np.bincount(labels, minlength=10) / len(labels)
        assert shares == pytest.approx(np.bincount(theirs.target) / 1797, abs=0.004)


@pytest.mark.usefixtures("untrained")
def test_the_demo_s_model_and_data_are_read_like_any_other(tmp_path: Path) -> None:
    data = demo(tmp_path / "made" / "digits")
    data.setup()
    assert data.names == [str(digit) for digit in range(10)]
    with watching_origins() as origins:
        model = load_backbone(find_backbone(str(tmp_path / "made" / "digits")), num_labels=10)
    assert origins.fresh(model) == {"fc.weight", "fc.bias"}
    assert data.splits["train"][0]["images"].shape == (3, 32, 32)


def test_of_two_that_need_the_demo_at_once_one_makes_it_and_the_other_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "_train", lambda *_: time.sleep(0.5))
    made = []
    monkeypatch.setattr(digits, "make_digits", lambda folder: (made.append(folder), make_digits(folder)))
    demos = [demo(tmp_path / "digits") for _ in range(2)]
    threads = [threading.Thread(target=data.setup) for data in demos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(len(data.splits["train"]) == 1078 for data in demos)


def test_a_demo_that_was_interrupted_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "digits").setup()
    assert not (tmp_path / "digits").exists()
    monkeypatch.setattr(digits, "_train", lambda *_: None)
    data = demo(tmp_path / "digits")
    data.setup()
    assert data.splits


def test_without_scikit_learn_the_demo_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'^E-PACKAGE: .*pip install "loralight\[demo\]"'):
        demo(tmp_path / "digits").setup()


@pytest.mark.parametrize("given", [{"path": "mine"}, {"train": "mine.csv"}, {"name": "x", "path": "hub"}])
def test_other_data_than_the_demo_s_is_refused(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^E-DATA: data\..*add data=image_classification"):
        DigitsDemo(folder=str(tmp_path), checkpoint=str(tmp_path), columns={}, **given)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"dear to me")
    with pytest.raises(InputError, match=r"^E-CKPT-HASH: .*photos is not a whole checkpoint"):
        demo(tmp_path / "photos").setup()
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"dear to me"


@pytest.mark.slow
def test_the_resnet_knows_half_of_the_digits_and_every_time_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder(tmp_path / name, make_digits)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    data = demo(tmp_path / "one")
    data.setup()
    model = load_backbone(find_backbone(str(tmp_path / "one")), num_labels=5).eval()
    rows = [row for row, label in enumerate(data.splits["test"].labels) if label < 5]
    batch = data.collate([data.splits["test"][row] for row in rows])
    with torch.no_grad():
        assert (model(batch["images"]).argmax(1) == batch["labels"]).float().mean() > 0.95


@pytest.mark.slow
def test_on_the_demo_lora_beats_a_linear_probe(
    in_process: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scores = {}
    for adapter in ("lora", "linear_probe"):
        run = tmp_path / adapter
        arguments = ["task=image_classification", f"adapter={adapter}", "trainer=cpu", f"hydra.run.dir={run}"]
        assert in_process("train", *arguments) == 0
        scores[adapter] = json.loads((run / "summary.json").read_text())["metrics"]["test/accuracy"]
    assert scores["lora"] > scores["linear_probe"] + 0.02  # 0.989 and 0.944: the probe is the best linear classifier
