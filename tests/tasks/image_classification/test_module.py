"""Any model of timm: the loss is the textbook's, predictions are timm's own, and the adapter loads in PEFT."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

import loralight
from loralight.acceleration import ChannelsLast, FrozenBatchNorms
from loralight.adapters import Adapter, FullFineTuning, LinearProbe, Lora, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.lora import LoraConv2d
from loralight.errors import InputError
from loralight.kernels.batch_norm import FrozenNorm
from loralight.tasks.image_classification import ImageClassification
from loralight.training import fit_temperature
from loralight.training.task import AdapterTask

LABELS = ["blue", "green", "red"]
FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]


def make(checkpoint: str, *, seed: int = 0, learnt: bool = True, **arguments: Any) -> ImageClassification:
    """A task whose adapter does something."""
    torch.manual_seed(seed)
    adapter: Adapter = arguments.pop("adapter", None) or Lora(targets="all", rank=2)
    accelerations = {"channels_last": ChannelsLast(), "batch_norm": FrozenBatchNorms()}
    settings = {"labels": LABELS, "accelerations": accelerations, **arguments}
    task = ImageClassification(checkpoint=checkpoint, adapter=adapter, **settings)
    task.configure_model()
    if learnt:
        with torch.no_grad():
            for parameter in trainable(task.model).values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    task.eval()
    return task


def batch_of(count: int = 5) -> dict[str, Tensor]:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"images": images, "labels": torch.tensor([2, 0, 1, 1, 2])[:count]}


def plain(family: str, folder: str) -> nn.Module:
    """The model of a folder as timm makes it, with a new head for three labels."""
    size = {"img_size": 32} if "vit" in family else {}
    model: nn.Module = timm.create_model(family, num_classes=7, **size)
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    model.reset_classifier(3)  # type: ignore[operator]
    return model.eval()


@pytest.fixture(scope="session")
def pictures(image_folders: Path) -> list[str]:
    """Image files of all three colours."""
    return [str(file) for file in sorted((image_folders / "test").rglob("*.*"))]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_textbook_s_and_smoothed_in_training_alone(tiny_resnet: str, smoothing: float) -> None:
    task, batch = make(tiny_resnet, label_smoothing=smoothing), batch_of()
    with torch.no_grad():
        log_p = task.model(batch["images"]).log_softmax(-1)
        for training in (False, True):
            task.train(training)
            spread = smoothing if training else 0.0
            target = F.one_hot(batch["labels"], 3) * (1 - spread) + spread / 3
            torch.testing.assert_close(task.step(batch).loss, -(target * log_p).sum(-1).mean())


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_weighted_images_have_the_textbook_s_loss_in_whole_batches_and_in_parts(tiny_resnet: str, mixup: float) -> None:
    counts = [70, 25, 5]
    task = make(tiny_resnet, class_weights="balanced", label_counts=counts, label_smoothing=0.1, mixup=mixup)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts)))
    torch.testing.assert_close(task.class_weights, weights.float())
    batch = batch_of()
    with torch.no_grad():
        log_p = task.model(batch["images"]).log_softmax(-1)
        steps = [task.step({k: v[rows] for k, v in batch.items()}) for rows in (slice(5), slice(4), slice(4, 5))]
    whole, *parts = steps
    rows = weights[batch["labels"]].float()
    wanted = -(rows * log_p.gather(1, batch["labels"][:, None])[:, 0]).sum() / rows.sum()
    torch.testing.assert_close(whole.loss, wanted)
    torch.testing.assert_close(
        sum(part.loss * part.weight for part in parts) / sum(part.weight for part in parts), wanted
    )
    with torch.no_grad():
        task.train()
        torch.manual_seed(3)
        step = task.step(batch)
        torch.manual_seed(3)
        images, targets = batch["images"], F.one_hot(batch["labels"], 3) * 0.9 + 0.1 / 3
        if task.mixing is not None:
            images, targets = task.mixing(images, batch["labels"])
        log_p = task.model(images).log_softmax(-1)
    row_weights = targets @ weights.float() if mixup else rows
    torch.testing.assert_close(step.loss, -(targets * weights * log_p).sum().float() / row_weights.sum())
    torch.testing.assert_close(step.weight, row_weights.sum().to(step.weight.dtype))


def test_blended_images_have_the_loss_of_both_labels_in_training_alone(tiny_resnet: str) -> None:
    task, batch = make(tiny_resnet, mixup=0.4, label_smoothing=0.1), batch_of(4)
    assert task.mixing is not None
    with torch.no_grad():
        plain = task.step(batch)
        torch.testing.assert_close(plain.loss, F.cross_entropy(task.model(batch["images"]), batch["labels"]))
        task.train()
        torch.manual_seed(3)
        blended = task.step(batch)
        torch.manual_seed(3)
        images, targets = task.mixing(batch["images"], batch["labels"])
        wanted = -(targets * task.model(images).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(blended.loss, wanted)
    assert torch.equal(blended.targets, batch["labels"])


def test_a_temperature_by_validation_rows_divides_the_logits_of_answers_and_metrics(
    tiny_resnet: str, pictures: list[str]
) -> None:
    task, batch = make(tiny_resnet, calibrate=True, temperature=2.0), batch_of()
    with torch.no_grad():
        logits = task.model(batch["images"])
        step = task.step(batch)
    torch.testing.assert_close(step.predictions, logits / 2)
    torch.testing.assert_close(step.loss, F.cross_entropy(logits, batch["labels"]))
    found = task.settle(lambda: (step.predictions, step.targets))
    assert found == {"temperature": pytest.approx(fit_temperature(logits, batch["labels"]), rel=1e-4)}
    warm, cold = (make(tiny_resnet, temperature=t).predict(pictures, top_k=3) for t in (2.0, 1.0))
    for one, other in zip(warm, cold, strict=True):
        p = torch.tensor(list(other["probabilities"].values())).sqrt()  # as logits at half their size have it
        assert list(one["probabilities"].values()) == pytest.approx((p / p.sum()).tolist(), abs=1e-4)
    assert make(tiny_resnet).settle(pytest.fail) == {}


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_batch_without_rows_has_no_loss_and_no_gradient(tiny_resnet: str, mixup: float) -> None:
    task = make(tiny_resnet, mixup=mixup)
    task.train()
    step = task.step({"images": torch.zeros(0, 3, 32, 32), "labels": torch.zeros(0, dtype=torch.long)})
    step.loss.backward()
    assert (float(step.loss.detach()), len(step.targets)) == (0.0, 0)
    assert all(p.grad is None or not p.grad.any() for p in task.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_but_the_head_takes_lora_and_the_head_learns(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task = make(checkpoints(family))
    layers = {name for name, part in task.model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    (head,) = task.head(task.model)
    assert set(task.adapted["all"]) == {name for name in layers if task.model.get_submodule(name) is not head}
    assert task.fresh(task.model) <= trainable(task.model).keys()


@pytest.mark.parametrize("architecture", ["efficientvit_m0", "shvit_s1"])
def test_a_norm_of_a_new_head_is_new_and_learns_with_it(architecture: str, tmp_path: Path) -> None:
    model = timm.create_model(architecture, num_classes=7)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    arguments: dict[str, Any] = {"checkpoint": str(tmp_path), "labels": ["a", "b", "c"]}
    task = ImageClassification(**arguments, adapter=Lora(targets="all-conv", rank=1))
    task.configure_model()
    assert {type(part) for part in task.head(task.model)} == {nn.Linear, nn.BatchNorm1d}
    assert len(task.fresh(task.model)) == 4 and task.fresh(task.model) <= trainable(task.model).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_timm_with_the_merged_weights(
    checkpoints: Callable[[str], str], family: str, pictures: list[str]
) -> None:
    task = make(checkpoints(family))
    found = task.predict(pictures, batch_size=5)
    merge(task.model)
    config = json.loads(Path(checkpoints(family), "config.json").read_text())
    model = plain(family, checkpoints(family))
    model.load_state_dict(task.model.state_dict())
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    transform = create_transform(**{key: config[key] for key in keys})
    for file, answer in zip(pictures, found, strict=True):
        with Image.open(file) as image, torch.no_grad():
            wanted = model(transform(image)[None]).softmax(-1)[0]
        assert answer["file"] == file
        assert answer["label"] == LABELS[int(wanted.argmax())]
        assert answer["probabilities"] == pytest.approx(dict(zip(LABELS, wanted.tolist(), strict=True)), abs=1e-5)
        assert sorted(answer["probabilities"].values(), reverse=True) == list(answer["probabilities"].values())


@pytest.mark.parametrize(
    ("family", "batch_norm"),
    [("test_resnet", "frozen"), ("test_resnet", "affine"), ("resnet10t", "frozen"), ("test_vit", "frozen")],
)
def test_an_exported_adapter_has_the_same_logits_in_peft(
    checkpoints: Callable[[str], str], family: str, batch_norm: str, tmp_path: Path
) -> None:
    task = make(checkpoints(family), batch_norm=batch_norm)
    task.save(tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain(family, checkpoints(family)), str(tmp_path / "adapter")).eval()
    images = batch_of()["images"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), task.model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_norm", ["frozen", "statistics", "affine"])
def test_an_exported_adapter_is_loaded_with_the_same_logits(
    checkpoints: Callable[[str], str], family: str, batch_norm: str, tmp_path: Path
) -> None:
    if batch_norm != "frozen" and family in ("test_convnext", "test_vit"):
        pytest.skip("it has no BatchNorm")
    task = make(checkpoints(family), batch_norm=batch_norm)
    task.train()
    with torch.no_grad():
        task.step(batch_of())  # statistics follow it
    task.eval()
    task.save(tmp_path / "adapter")
    again = loralight.load(tmp_path / "adapter", device="cpu")
    images = batch_of()["images"]
    with torch.no_grad():
        assert torch.equal(again.model(images), task.model(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_in_any_memory_format_is_that_of_the_plain_model(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task, batch = make(checkpoints(family), base_dropout=False), batch_of()
    task.model.double()
    task.results.double()
    batch["images"] = batch["images"].double()
    parameters = trainable(task.model)
    stem = next(module for module in task.model.modules() if isinstance(module, nn.Conv2d))
    hooks = dict(stem._forward_pre_hooks)
    stem._forward_pre_hooks.clear()
    wanted = torch.autograd.grad(task.eval().step(batch).loss, [*parameters.values()])
    stem._forward_pre_hooks.update(hooks)
    seen: list[Tensor] = []
    stem.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    found = torch.autograd.grad(task.train().step(batch).loss, [*parameters.values()])
    depthwise = any(getattr(module, "groups", 1) > 1 for module in task.model.modules())
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is not depthwise
    for name, ours, theirs in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_training_folds_what_is_frozen_and_evaluation_does_not(tiny_resnet: str) -> None:
    task, batch = make(tiny_resnet), batch_of()
    with torch.no_grad():
        before = task.step(batch).predictions
    kinds = [type(module) for module in task.model.modules()]
    task.train()
    frozen = [module for module in task.model.modules() if isinstance(module, FrozenNorm)]
    assert len(frozen) == sum(isinstance(module, nn.BatchNorm2d) for module in task.model.modules()) > 3
    folded = [module for module in task.model.modules() if isinstance(module, LoraConv2d) and module.follower]
    assert len(folded) == len(frozen)
    task.step(batch).loss.backward()
    task.eval()
    assert [type(module) for module in task.model.modules()] == kinds
    with torch.no_grad():
        assert torch.equal(task.step(batch).predictions, before)


def test_no_frozen_norm_is_left_to_pytorch_in_training(tiny_resnet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(tiny_resnet, adapter=Lora(targets="layer*.conv?", rank=2)).train()  # its stem has no adapter
    assert not isinstance(task.model.get_submodule("conv1"), LoraConv2d)
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", lambda *_: pytest.fail("more memory, and a pass"))
    task.step(batch_of()).loss.backward()


def test_a_batch_of_one_image_without_statistics_says_what_to_change(tiny_resnet: str) -> None:
    task = make(tiny_resnet, batch_norm="statistics").train()
    with pytest.raises(InputError, match=r"E-BATCH: .*data\.batch_size"):
        task.step(batch_of(1))


@pytest.mark.parametrize(
    "adapter", [Lora(targets="all"), FullFineTuning(), LinearProbe()], ids=lambda a: type(a).__name__
)
def test_a_frozen_batch_norm_keeps_its_statistics_in_training(tiny_resnet: str, adapter: Adapter) -> None:
    task = make(tiny_resnet, adapter=adapter)
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    assert before
    task.train()
    task.step(batch_of()).loss.backward()
    changed = [name for name, buffer in task.model.named_buffers() if not torch.equal(buffer, before[name])]
    assert bool(changed) == isinstance(adapter, FullFineTuning)


def test_images_may_be_files_records_bytes_or_in_memory(tiny_resnet: str, pictures: list[str]) -> None:
    task, file = make(tiny_resnet, image_column="photo"), pictures[0]
    wanted = task.predict([file])[0]["probabilities"]
    content = Path(file).read_bytes()
    with Image.open(file) as opened:
        image = opened.copy()
        given = [Path(file), opened, image, content, {"photo": file}, {"photo": {"bytes": content, "path": "x.jpg"}}]
        answers = task.predict([*given, {"photo": image, "file": "mine", "id": 3}])
    assert all(answer["probabilities"] == pytest.approx(wanted, abs=1e-5) for answer in answers)
    assert [answer["file"] for answer in answers] == [file, file, None, None, file, "x.jpg", "mine"]


def test_the_most_probable_labels_are_given_as_many_as_asked_for(tiny_resnet: str, pictures: list[str]) -> None:
    task = make(tiny_resnet, labels=[f"kind {n}" for n in range(7)])
    five, two, all_of_them = (task.predict(pictures[:1], **o)[0] for o in ({}, {"top_k": 2}, {"top_k": 99}))
    assert [len(answer["probabilities"]) for answer in (five, two, all_of_them)] == [5, 2, 7]
    assert next(iter(two["probabilities"])) == two["label"]
    assert sum(all_of_them["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match=r"^E-INPUT: options\.top_k=0"):
        task.predict(pictures[:1], top_k=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img": "a.jpg"}, "E-INPUT: a record of 'img': its image is looked for in 'image'"),
        (5, "E-IMAGE: image 1 of the batch: 5 is no image"),
        ("gone.jpg", "E-IMAGE: gone.jpg: cannot be read: .*No such file"),
        (b"nothing", "E-IMAGE: image 1 of the batch: cannot be read: not an image"),
    ],
)
def test_an_input_that_is_no_image_is_an_error(tiny_resnet: str, pictures: list[str], given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make(tiny_resnet).predict([pictures[0], given])


def read(source: str) -> list[Any]:
    return ImageClassification.read_inputs(source)


def test_inputs_are_a_file_a_folder_a_pattern_or_a_list_of_names(
    image_folders: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = image_folders / "test"
    assert read(pictures[3]) == [pictures[3]]
    assert read(str(test)) == pictures
    assert read(f"{test}/*/*.png") == [file for file in pictures if file.endswith(".png")]
    assert sorted(read(f"{image_folders}/**/0.jpg")) == sorted(map(str, image_folders.rglob("0.jpg")))
    (tmp_path / "names.txt").write_text("\n".join([pictures[0], "", "beside.jpg"]))
    (tmp_path / "beside.jpg").write_bytes(Path(pictures[0]).read_bytes())
    monkeypatch.chdir("/")
    assert read(str(tmp_path / "names.txt")) == [pictures[0], str(tmp_path / "beside.jpg")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(pictures)))
    assert read("-") == pictures


def test_rows_of_a_table_are_inputs(tiny_resnet: str, pictures: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(Path(pictures[0]).read_bytes())
    (tmp_path / "rows.csv").write_text("image,label\na.jpg,blue\n")
    rows = [{"bytes": Path(pictures[0]).read_bytes(), "path": "a.jpg"}]
    Dataset.from_dict({"image": rows, "label": ["blue"]}).to_parquet(tmp_path / "rows.parquet")
    task = make(tiny_resnet)
    wanted = task.predict(pictures[:1])[0]["probabilities"]
    for table in ("rows.csv", "rows.parquet"):
        (answer,) = task.predict(read(str(tmp_path / table)))
        assert answer["probabilities"] == pytest.approx(wanted, abs=1e-5)
        assert Path(answer["file"]).name == "a.jpg"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}/empty", "E-DATA: input=.*empty: no image there"),
        ("{folder}/*.png", r"E-DATA: input=.*\*\.png: no image there"),
        ("{folder}/gone.jpg", r"E-DATA: input=.*gone\.jpg: no image there"),
        ("{folder}/web.jpg", r"E-IMAGE: .*web\.jpg: cannot be read: not an image"),
        ("{folder}", r"E-IMAGE: .*web\.jpg: cannot be read: not an image"),
        ("{folder}/names.txt", r"E-IMAGE: gone\.jpg: cannot be read: .*No such file"),
        ("{folder}/photo.raw", r"E-DATA: input=.*photo\.raw: neither an image \(.*\) nor a text file of names"),
    ],
)
def test_inputs_that_are_no_images_are_errors_before_the_model_is_loaded(
    tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "web.jpg").write_text("<html>")
    (tmp_path / "names.txt").write_text("gone.jpg")
    (tmp_path / "photo.raw").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=f"^{message}"):
        read(source.format(folder=tmp_path))


@pytest.fixture
def run_of_colours(tiny_resnet: str, image_folders: Path) -> list[str]:
    """Overrides of `loralight train` for a run of seconds on the colours."""
    data = ["data=image_classification", f"data.path='{image_folders}'", "data.batch_size=8"]
    model = [f"model.checkpoint='{tiny_resnet}'", "adapter.rank=2", "optimizer.lr=0.01"]
    trainer = ["trainer=cpu", "trainer.max_epochs=4", "trainer.num_sanity_val_steps=0", "hydra.run.dir=run"]
    return ["task=image_classification", *data, *model, *trainer]


def test_colours_are_learnt_measured_and_predicted_through_the_command_line(
    run_of_colours: list[str], in_process: Callable[..., int], pictures: list[str], tmp_path: Path
) -> None:
    assert in_process("train", *run_of_colours) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["test/accuracy"] > 0.9
    assert "test/top5" not in summary["metrics"]
    table, picture = tmp_path / "run" / "confusion_matrix.csv", tmp_path / "run" / "confusion_matrix.png"
    counts = [[int(count) for count in line.split(",")[1:]] for line in table.read_text().splitlines()[1:]]
    assert sum(map(sum, counts)) == len(pictures)
    hits = sum(counts[number][number] for number in range(3))
    assert hits / len(pictures) == pytest.approx(summary["metrics"]["test/accuracy"])
    kept = table.read_bytes(), picture.read_bytes()
    assert in_process("evaluate", *run_of_colours[:-1], "run=run", "data.test=null", "output=again.json") == 0
    assert json.loads(Path("again.json").read_text())["test/accuracy"] == summary["metrics"]["test/accuracy"]
    assert (table.read_bytes(), picture.read_bytes()) == kept
    folder = Path(pictures[0]).parent.parent
    assert in_process("predict", "run=run", f"input='{folder}'", "output=labels.jsonl", "options.top_k=1") == 0
    answers = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()]
    assert [answer["file"] for answer in answers] == pictures
    assert sum(answer["label"] == Path(answer["file"]).parent.name for answer in answers) == hits


def test_a_run_without_matplotlib_says_how_to_get_the_picture(
    run_of_colours: list[str],
    in_process: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    assert in_process("train", *run_of_colours, "debug=fast") == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert 'no picture of the confusion matrix without matplotlib: pip install "loralight[report]"' in log
    assert not (tmp_path / "run" / "confusion_matrix.png").exists()


def test_a_real_resnet_keeps_its_old_classes_apart(shared_data: Path) -> None:
    folder = shared_data.parent / "models" / "resnet18_cifar5"
    if not folder.is_dir():
        pytest.skip("there are no weights beside the data sets")
    labels = json.loads((folder / "config.json").read_text())["classes"]
    task: AdapterTask = make(str(folder), labels=labels, adapter=LinearProbe(), learnt=False)
    assert task.fresh(task.model) == set()
    assert task.head(task.model)[0].out_features == 5
