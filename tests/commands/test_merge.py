"""`loralight merge`: a plain model, and a certificate whose numbers others find too."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import loralight
from loralight.adapters import Lora
from loralight.adapters.base import Added
from loralight.artifacts.certificate import difference, outputs, probe_rows
from loralight.cli import run as command_line
from loralight.data import TaskData
from loralight.models.pretrained import load_model, load_tokenizer, new_head, save_model
from loralight.training.checkpoint import verify
from loralight.training.task import AdapterTask, Step

InProcess = Callable[..., int]
TEXTS = ["a fine film", "what a mess, really", "joy"]


def train(folder: Path, tiny_bert: str, texts: Path, *overrides: str) -> Path:
    """A finished run of seconds in ``folder``."""
    line = ["data=text_classification", f"data.path='{texts}'", f"model.checkpoint='{tiny_bert}'", "trainer=cpu"]
    line += ["model.max_length=16", "data.batch_size=8", "trainer.max_epochs=1", "optimizer.lr=0.01", *overrides]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["loralight"])
        handlers = list(logging.getLogger().handlers)
        assert command_line(["train", *line, f"hydra.run.dir='{folder}'"]) == 0
        logging.captureWarnings(False)
        logging.getLogger().handlers = handlers
    return folder


@pytest.fixture(scope="module")
def run(tiny_bert: str, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run") / "run", tiny_bert, texts)


@pytest.fixture
def merge(in_process: InProcess) -> Iterator[Callable[..., int]]:
    """Runs ``loralight merge output=merged`` on the CPU; returns its exit code."""

    def command(run: Path, *given: str) -> int:
        return in_process("merge", f"run='{run}'", "output=merged", "device=cpu", *given)

    yield command


def certificate(folder: Path) -> Any:
    return json.loads((folder / "merged" / "merge_certificate.json").read_text(encoding="utf-8"))


def dense(run: Path, base: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Each adapted layer's weight and update, from the files alone, in float64."""
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    weights = load_file(f"{base}/model.safetensors")
    found = {}
    for layer in config["target_modules"]:
        a, b = (adapter[f"base_model.model.{layer}.lora_{part}.weight"].double() for part in "AB")
        found[layer] = weights[f"{layer}.weight"].double(), config["lora_alpha"] / config["r"] * b @ a
    return found


def lost(weight: Tensor, update: Tensor, dtype: torch.dtype) -> float:
    whole = weight + update
    return float((whole.to(dtype).double() - whole).norm() / update.norm())


def test_a_merged_classifier_is_a_pipeline_that_answers_by_name(
    run: Path, merge: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(run) == 0
    printed = capsys.readouterr().out
    assert "merge certificate" in printed and "validation/accuracy" in printed and "model: merged" in printed
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), top_k=None, device="cpu")
    for text, answer in zip(TEXTS, loralight.load(run, device="cpu").predict(TEXTS), strict=True):
        (scores,) = classify([text])
        assert {one["label"]: one["score"] for one in scores} == pytest.approx(answer["probabilities"], abs=2e-6)
    assert sorted(os.listdir(tmp_path)) == ["merged"]
    verify(tmp_path / "merged")


def test_the_certificate_of_float32_holds_what_training_reported(
    run: Path, merge: Callable[..., int], tmp_path: Path
) -> None:
    assert merge(run, "split=test") == 0
    found, summary = certificate(tmp_path), json.loads((run / "summary.json").read_text())
    reported = {name: value for name, value in summary["metrics"].items() if name.startswith("test/")}
    assert found["metrics"]["adapted"] == pytest.approx(reported)
    assert found["metrics"]["merged"] == pytest.approx(reported, rel=1e-5)
    assert (found["dtype"], found["tolerance"], found["within_tolerance"]) == ("float32", 2e-6, True)
    assert found["outputs"]["relative_error"] < 2e-6
    assert found["update_lost"]["max"] == 0
    assert (found["task"], found["adapter"]) == ("text_classification", "lora")


def test_what_bfloat16_loses_of_the_updates_is_what_a_dense_computation_says(
    run: Path, merge: Callable[..., int], tmp_path: Path, tiny_bert: str
) -> None:
    assert merge(run, "dtype=bfloat16", "split=null") == 0
    found = certificate(tmp_path)["update_lost"]
    wanted = {layer: lost(*pair, torch.bfloat16) for layer, pair in dense(run, tiny_bert).items()}
    assert len(wanted) == 12
    assert found["layers"] == pytest.approx(wanted, rel=1e-3)
    assert found["max"] == max(found["layers"].values()) == found["layers"][found["worst_layer"]]
    assert found["mean"] == pytest.approx(sum(found["layers"].values()) / 12)
    assert certificate(tmp_path)["metrics"] is None


def test_the_difference_of_outputs_is_that_of_the_folder_s_model_in_its_dtype(
    run: Path, merge: Callable[..., int], tmp_path: Path, texts: Path
) -> None:
    assert merge(run, "dtype=bfloat16") == 0
    folder, found = str(tmp_path / "merged"), certificate(tmp_path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    adapted = loralight.load(run, device="cpu")
    lines = [line.rpartition(",")[0] for line in (texts / "validation.csv").read_text().splitlines()[1:]]
    chosen = [lines[row].strip('"') for row in found["probe"]["rows"]]
    assert found["probe"] == {"split": "validation", "rows": list(range(0, 20, 2))}
    before, after = [], []
    with torch.no_grad():
        for text in chosen:
            inputs = tokenizer(text, return_tensors="pt")
            after.append(model(**inputs).logits.double())
            before.append(adapted.model(**inputs).logits.double())
    y, gap = torch.cat(before), torch.cat(after) - torch.cat(before)
    outputs = found["outputs"]
    assert outputs["values"] == y.numel() == 20
    assert outputs["max_abs_difference"] == pytest.approx(float(gap.abs().max()), rel=1e-4)
    assert outputs["mean_abs_difference"] == pytest.approx(float(gap.abs().mean()), rel=1e-4)
    assert outputs["relative_error"] == pytest.approx(float(gap.norm() / y.norm()), rel=1e-4)
    assert outputs["max_abs_output"] == pytest.approx(float(y.abs().max()), rel=1e-4)


def test_a_small_update_is_lost_in_bfloat16_and_the_certificate_says_so(
    run: Path,
    merge: Callable[..., int],
    tmp_path: Path,
    tiny_bert: str,
    rewrite: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = shutil.copytree(run, tmp_path / "small")
    tensors = load_file(small / "adapter" / "adapter_model.safetensors")
    shrunk = {name: t * 1e-3 if ".lora_B." in name else t for name, t in tensors.items()}
    rewrite(small / "adapter", lambda folder: save_file(shrunk, folder / "adapter_model.safetensors"))
    assert merge(small, "dtype=bfloat16") == 0
    found = certificate(tmp_path)["update_lost"]
    wanted = {layer: lost(*pair, torch.bfloat16) for layer, pair in dense(small, tiny_bert).items()}
    assert min(wanted.values()) > 1  # rounding is larger than the update
    assert found["layers"] == pytest.approx(wanted, rel=1e-2)
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())  # the table may break the line
    assert f"at most, in {found['worst_layer']}" in told


def test_above_the_tolerance_nothing_is_written_unless_it_is_forced(
    run: Path, merge: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["dtype=bfloat16", "tolerance=1e-6", "split=null"]
    assert merge(run, *settings) == 2
    message = capsys.readouterr().err
    assert "E-MERGE: in bfloat16" in message and "tolerance of 1.0e-06: nothing was written" in message
    assert os.listdir(tmp_path) == []
    assert merge(run, *settings, "force=true") == 0
    found = certificate(tmp_path)
    assert (found["within_tolerance"], found["tolerance"]) == (False, 1e-6)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize("method", ["full", "linear_probe"])
def test_what_learns_without_an_adapter_is_written_just_the_same(
    method: str, merge: Callable[..., int], tmp_path: Path, tiny_bert: str, texts: Path
) -> None:
    run = train(tmp_path / "run", tiny_bert, texts, f"adapter={method}", "optimizer.lr=1e-3")
    assert merge(run, "split=null") == 0
    found = certificate(tmp_path)
    assert found["update_lost"] is None and found["outputs"]["max_abs_difference"] == 0
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), top_k=None, device="cpu")
    (answer,) = loralight.load(run, device="cpu").predict(TEXTS[:1])
    (scores,) = classify(TEXTS[:1])
    assert {one["label"]: one["score"] for one in scores} == pytest.approx(answer["probabilities"], abs=2e-6)


class _Extra(Added):
    """A part that no weight takes up."""


def test_an_adapter_that_cannot_be_merged_is_refused_before_the_data_is_read(
    run: Path,
    merge: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apply_ = Lora.apply_

    def with_a_part(self: Lora, model: nn.Module, candidates: Any) -> dict[str, list[str]]:
        model.extra = _Extra()
        return apply_(self, model, candidates)

    monkeypatch.setattr(Lora, "apply_", with_a_part)
    monkeypatch.setattr(TaskData, "setup", lambda self: pytest.fail("the data is read"))
    assert merge(run) == 2
    assert "E-MERGE: extra (_Extra) is an added part" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_without_the_run_s_data_a_model_is_written_on_the_user_s_word_alone(
    merge: Callable[..., int], tmp_path: Path, tiny_bert: str, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(texts, tmp_path / "texts")
    run = train(tmp_path / "run", tiny_bert, moved)
    shutil.rmtree(moved)
    capsys.readouterr()
    assert merge(run) == 2
    message = capsys.readouterr().err
    assert "E-MERGE: the run's data" in message and "force=true: E-DATA" in message
    assert merge(run, "force=true") == 0
    found = certificate(tmp_path)
    assert [found[key] for key in ("probe", "outputs", "metrics")] == [None] * 3
    assert not found["within_tolerance"]
    shutil.rmtree(tmp_path / "merged")
    assert merge(run, f"data.path='{texts}'") == 0  # other data will do
    assert certificate(tmp_path)["within_tolerance"]


def test_the_base_may_have_moved(merge: Callable[..., int], tmp_path: Path, tiny_bert: str, texts: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    run = train(tmp_path / "run", str(shutil.copytree(tiny_bert, before)), texts)
    before.rename(after)
    assert merge(run, f"checkpoint='{after}'") == 0
    assert certificate(tmp_path)["base"]["name"] == str(after)


def test_a_base_in_half_precision_is_merged_in_float32(
    merge: Callable[..., int], tmp_path: Path, tiny_bert: str, texts: Path
) -> None:
    half = shutil.copytree(tiny_bert, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in weights.items()}, half / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    run = train(tmp_path / "run", str(half), texts)
    assert merge(run, "split=null") == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for layer, (weight, update) in dense(run, str(half)).items():
        torch.testing.assert_close(merged[f"{layer}.weight"], (weight + update).float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dtype=int8"], "E-DTYPE: dtype=int8: choose float32, float16, bfloat16"),
        (["dtype=bfloat"], "Did you mean 'bfloat16'"),
        (["tolerance=-1"], "E-TOLERANCE"),
        (["tolerance=little"], "E-TOLERANCE"),
        (["force=perhaps"], "E-CONFIG: force=perhaps"),
        (["split=train"], "E-SPLIT"),
        (["device=abacus"], "E-DEVICES"),
        (["fold_batch_norm=true"], "E-FOLD: BertForSequenceClassification has no BatchNorm"),
        (["checkpoint=nowhere"], "E-MODEL"),
        (["run=nowhere"], "E-RUN: run=nowhere"),
        (["output=kept"], "E-OUTPUT: output=kept: it exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_and_nothing_is_written(
    given: list[str], message: str, run: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    line = {"run": f"run='{run}'", "output": "output=merged", "device": "device=cpu"}
    assert message in refused("merge", *{**line, **{one.partition("=")[0]: one for one in given}}.values())
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == []


class _Plugin(AdapterTask):
    """A stranger's task, which says nothing of merging."""

    def build_model(self) -> nn.Module:
        self.tokenizer = load_tokenizer(self.checkpoint)
        return load_model(AutoModelForSequenceClassification, self.checkpoint, num_labels=2)

    def __init__(self, *, checkpoint: str, **training: Any) -> None:
        super().__init__(**training)
        self.checkpoint = checkpoint

    def head(self, model: nn.Module) -> list[nn.Module]:
        return new_head(model, self.fresh(model))

    def step(self, batch: Any) -> Step: ...

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def predict_batch(self, inputs: Any) -> Any: ...


def test_a_plugin_need_not_say_how_its_transformers_model_is_written(tiny_bert: str, tmp_path: Path) -> None:
    task = _Plugin(checkpoint=tiny_bert, adapter=Lora(targets="all-linear"))
    task.configure_model()
    loralight.merge(task.eval().model)
    task.save_pretrained(tmp_path)
    model, tokenizer = (auto.from_pretrained(tmp_path) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, task.model(**inputs).logits)


class _OfParts(_Plugin):
    """Its step calls a part of the model alone."""

    def step(self, batch: Any) -> Step:
        features = self.model.get_submodule("bert")(**batch).pooler_output
        return Step(features.mean(), features, torch.zeros(len(features)))


class _OneText(TaskData):
    """A validation split of one text."""

    def load(self) -> dict[str, Any]:
        return {"train": [0], "validation": [{"input_ids": torch.tensor([[5, 6, 7]])}]}

    def collate(self, rows: list[Any]) -> Any:
        return rows[0]


def test_where_the_model_is_never_called_as_a_whole_what_the_step_gives_is_compared(tiny_bert: str) -> None:
    task, data = _OfParts(checkpoint=tiny_bert, adapter=Lora(targets="all-linear")), _OneText()
    task.configure_model()
    data.setup()
    with torch.no_grad():
        wanted = task.eval().step(data.splits["validation"][0])
    ((predictions, loss),) = outputs(task, data, probe_rows(data))
    assert torch.equal(predictions, wanted.predictions.flatten()) and torch.equal(loss, wanted.loss.flatten())
    found = difference([[predictions, loss]], [[predictions + 0.5, loss + 0.5]])
    assert found["mean_abs_difference"] == pytest.approx(0.5) == found["max_abs_difference"]
    size = torch.cat([predictions, loss]).norm()
    assert found["relative_error"] == pytest.approx(float(0.5 * 33**0.5 / size))


def test_of_a_model_of_no_library_the_weights_are_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    model[1].weight = model[0].weight  # tied
    save_model(model, tmp_path)
    twin = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    twin[1].weight = twin[0].weight
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
