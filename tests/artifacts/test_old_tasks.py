"""Folders of every task and of scripts that an earlier version wrote: each is still read, with the same results.

``old_tasks/`` holds runs of the three tasks that ``old_runs/`` lacks, with their data, the inputs that `loralight
predict` was given and its answers, and two adapters that scripts saved, with their logits; all by the code of commit
2d75b67. The model of the words is that of ``old_runs/``, that of the images is made here.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from pytest import approx
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import loralight
from loralight import AdapterTask, Step
from loralight.adapters import Lora

OLD = Path(__file__).with_name("old_tasks")
TASKS = sorted(folder.name for folder in OLD.iterdir() if (folder / "run").is_dir())
OPTIONS: dict[str, dict[str, Any]] = {"text_generation": {"max_new_tokens": 6}}
IDS = torch.arange(5, 26).view(3, 7)


class Sentiment(AdapterTask):
    """A task in a script, of which no plugin knows."""

    def __init__(self, *, checkpoint: str, **training: Any) -> None:
        super().__init__(**training)
        self.checkpoint = checkpoint

    def build_model(self) -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(self.checkpoint)

    def head(self, model: Any) -> list[Any]:
        return [model.classifier, model.bert.pooler]

    def step(self, batch: Any) -> Step:
        raise NotImplementedError

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": BinaryAccuracy()})

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"logits": logits.tolist()} for logits in self.model(torch.tensor(inputs)).logits]


def adapter() -> Lora:
    return Lora(targets=["query", "*.layer.1.output.dense"], rank=2)


def build_backbone(folder: Path) -> None:
    """A ResNet whose weights are quotients of whole numbers, and so the same on every machine."""
    folder.mkdir()
    model = timm.create_model("test_resnet", num_classes=3)
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(_spread(tensor, number, name).view_as(tensor))
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 3, "input_size": [3, 16, 16], "interpolation": "bilinear"}
    config |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 1.0}
    (folder / "config.json").write_text(json.dumps(config))


def _spread(tensor: Tensor, number: int, name: str) -> Tensor:
    numbers = (torch.arange(tensor.numel()) * 7919 + number) % 1009
    spread = numbers.to(tensor.dtype) / 1009
    if tensor.dim() > 1:
        return (spread - 0.5) * 4 / 2 ** (tensor[0].numel().bit_length() // 2)
    return spread + 0.5 if name.endswith(("weight", "var")) else spread - 0.5


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, in_process: Callable[..., int], tmp_path: Path) -> str:
    """A task whose old run is copied to the working directory, next to its model and data."""
    place(request.param, tmp_path)
    return str(request.param)


def place(task: str, folder: Path) -> None:
    shutil.copytree(OLD / task, folder, dirs_exist_ok=True)
    if task == "image_classification":
        build_backbone(folder / "base")
    elif not (folder / "base").exists():
        shutil.copytree(OLD.with_name("old_runs") / "base", folder / "base")


def test_it_predicts_as_it_did(task: str) -> None:
    inputs = Path("inputs.txt").read_text().splitlines()
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    found = loralight.load("run").predict(inputs, **OPTIONS.get(task, {}))
    for answer, expected in zip(found, answers, strict=True):
        assert_same(answer, {name: expected[name] for name in answer})  # a line also has its input


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        assert_same(list(found.values()), [expected[name] for name in found])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == approx(expected, abs=5e-6)


def test_it_is_evaluated_as_it_was(task: str, in_process: Callable[..., int]) -> None:
    assert in_process("evaluate", "run=run", "split=test", "output=scores.json") == 0
    scores, summary = json.loads(Path("scores.json").read_text()), json.loads(Path("run/summary.json").read_text())
    expected = {name: value for name, value in summary["metrics"].items() if name.startswith("test/")}
    assert {name: scores[name] for name in expected} == approx(expected, abs=2e-6, rel=2e-6)


def test_a_run_whose_cache_of_frozen_blocks_was_a_callback_goes_on(
    in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place("ner", tmp_path)
    assert "prefix" in yaml.safe_load(Path("run/.hydra/config.yaml").read_text())["callbacks"]
    assert in_process("train", "resume=run", "trainer.max_epochs=13") == 0, capsys.readouterr().err
    assert "frozen blocks are computed once for each row" in Path("run/train.log").read_text()
    assert list(Path("run/checkpoints/last").glob("epoch=12-*"))


def test_what_scripts_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place("scripts", tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = json.loads(Path("logits.json").read_text())
    answers = Sentiment.load("task", device="cpu").predict(IDS.tolist())
    assert [answer["logits"] for answer in answers] == [approx(row, abs=5e-6) for row in expected["task"]]
    model = AutoModelForSequenceClassification.from_pretrained("base").eval()
    loralight.load_adapter(model, "model")
    with torch.no_grad():
        assert model(IDS).logits.tolist() == [approx(row, abs=5e-6) for row in expected["model"]]
