"""`loralight estimate` and `auto_batch`: shapes alone say what a real step keeps, and no weights are read."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from loralight.adapters.base import trainable
from loralight.commands.auto_batch import largest_that_runs, with_largest_batch
from loralight.commands.estimate import Estimate, longest_batch
from loralight.config.build import build_task, build_trainer
from loralight.config.composition import compose, plain
from loralight.errors import InputError
from loralight.logs import human
from loralight.training.footprint import footprint
from loralight.training.memory import parse_memory

InProcess = Callable[..., int]
KINDS = ["text_classification", "ner", "text_generation", "image_classification"]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def tiny(tiny_bert: str, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Overrides for a tiny model of each task on a few rows."""

    def overrides(kind: str) -> list[str]:
        return [f"task={kind}", "trainer=cpu", "data.batch_size=4", *special[kind]()]

    def language_model() -> list[str]:
        folder = tmp_path_factory.mktemp("llama")
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert, eos_token="[SEP]")
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return ["data=text_generation", f"data.path={texts}", "model.max_length=32", f"model.checkpoint={folder}"]

    def image_model() -> list[str]:
        folder = tmp_path_factory.mktemp("images")
        save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), folder / WEIGHTS)
        config = {"architecture": "test_resnet", "num_classes": 5, "input_size": [3, 32, 32]}
        (folder / "config.json").write_text(json.dumps(config))
        for label in ("light", "dark"):
            (folder / "train" / label).mkdir(parents=True)
            for number in range(10):
                shade = np.full((32, 32, 3), 20 * number + 5, dtype=np.uint8)
                Image.fromarray(shade).save(folder / "train" / label / f"{number}.png")
        return ["data=image_classification", f"data.path={folder / 'train'}", f"model.checkpoint={folder}"]

    special: dict[str, Callable[[], list[str]]] = {
        "text_classification": lambda: [
            *("data=text_classification", f"data.path={texts}", f"model.checkpoint={tiny_bert}", "model.max_length=16")
        ],
        "ner": lambda: [f"model.checkpoint={tiny_bert}", "model.max_length=32", "model.stride=8"],
        "text_generation": language_model,
        "image_classification": image_model,
    }
    return overrides


def config_of(overrides: list[str]) -> dict[str, Any]:
    config = compose("train", overrides)
    config.callbacks, config.logger = {}, {}  # they know of the run's folder
    return dict(plain(config))


# A task, an adapter and a precision act on a step by code of their own: each precision is tried with both adapters, and
# each task with two of these pairs. All others are slow.
PAIRS = {
    ("lora", "32-true"): ["text_classification", "text_generation"],
    ("lora", "bf16-mixed"): ["text_generation", "image_classification"],
    ("lora", "bf16-true"): ["ner", "image_classification"],
    ("full", "32-true"): ["ner"],
    ("full", "bf16-true"): ["text_classification"],
}


@pytest.mark.parametrize(
    ("kind", "adapter", "precision"),
    [
        pytest.param(kind, *pair, marks=[] if kind in kinds else pytest.mark.slow)
        for kind in KINDS
        for pair, kinds in PAIRS.items()
    ],
)
def test_what_is_counted_on_shapes_is_what_a_real_step_keeps(
    kind: str, adapter: str, precision: str, tiny: Callable[[str], list[str]]
) -> None:
    config = config_of([*tiny(kind), f"adapter={adapter}", f"trainer.precision={precision}"])
    estimate = Estimate(config)
    plugin = build_trainer(config, Path(), []).precision_plugin
    task = build_task(config, estimate.data.model_arguments())
    plugin.convert_module(task)
    batch, optimizer = plugin.convert_input(longest_batch(estimate.data, 5)), task.make_optimizer()
    assert footprint(task, optimizer, batch, precision=plugin.forward_context) == estimate.footprint(5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_that_a_plain_training_step_has(kind: str, tiny: Callable[[str], list[str]]) -> None:
    config = config_of([*tiny(kind), "~acceleration.selective_recompute"])  # it has hooks of its own
    estimate = Estimate(config)
    task = build_task(config, estimate.data.model_arguments())
    batch, optimizer = longest_batch(estimate.data, 4), task.make_optimizer()
    weights = [*task.model.parameters(), *task.model.buffers()]
    excluded = {tensor.untyped_storage().data_ptr() for tensor in [*weights, *batch.values()]}
    kept: dict[int, Tensor] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task.step(batch).loss
    activations = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in excluded)
    torch.autograd.backward(loss)
    optimizer.step()
    learns = list(trainable(task.model).values())
    found = estimate.footprint(4)
    assert found.activations == activations + loss.nbytes > loss.nbytes
    assert found.gradients == sum(parameter.grad.nbytes for parameter in learns if parameter.grad is not None) > 0
    assert found.optimizer == sum(8 * parameter.numel() + 4 for parameter in learns)  # AdamW: two values, and a count
    assert found.weights == sum(tensor.nbytes for tensor in weights)
    assert found.peak >= found.weights + found.gradients + found.optimizer + activations
    assert estimate.num_learning == sum(parameter.numel() for parameter in learns)


# What loads a model is transformers or timm: each meets both, and each task one.
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text_classification", None),
        ("ner", b"no weights"),
        ("text_generation", None),
        ("image_classification", None),
        ("image_classification", b"no weights"),
        pytest.param("text_classification", b"no weights", marks=pytest.mark.slow),
        pytest.param("ner", None, marks=pytest.mark.slow),
        pytest.param("text_generation", b"no weights", marks=pytest.mark.slow),
    ],
)
def test_weights_are_not_read(
    kind: str, content: bytes | None, tiny: Callable[[str], list[str]], tmp_path: Path, in_process: InProcess
) -> None:
    line = tiny(kind)
    name, _, checkpoint = next(override for override in line if "checkpoint" in override).partition("=")
    folder = copytree(checkpoint, tmp_path / "checkpoint")
    (folder / WEIGHTS).unlink()
    if content is not None:
        (folder / WEIGHTS).write_bytes(content)
    assert in_process("estimate", *line, f"{name}={folder}", "memory=40GB", "output=memory.json") == 0
    report = json.loads((tmp_path / "memory.json").read_text())
    assert report["bytes"].keys() == report["everything"].keys()
    assert report["everything"]["gradients"] > report["bytes"]["gradients"] > 0
    assert report["batch_size"] == 4 and report["memory"] == 40_000_000_000


def test_the_largest_batch_fits_and_one_more_may_not(tiny: Callable[[str], list[str]]) -> None:
    config = config_of([*tiny("image_classification"), "data.batch_size=2"])  # rows that are all alike: a straight line
    estimate = Estimate(config)
    for rows in (1, 3, 9):
        needed = sum(estimate.sizes(rows).values())
        assert abs(estimate.largest(int(needed / 0.9) + 1000) - rows) <= 1
    assert estimate.largest(10**12) == len(estimate.data.splits["train"])


def test_a_batch_is_of_the_longest_rows(tiny: Callable[[str], list[str]]) -> None:
    data = Estimate(config_of(tiny("text_classification"))).data
    lengths = sorted(data.lengths("train"), reverse=True)
    assert longest_batch(data, 3)["attention_mask"].sum(1).tolist() == lengths[:3]
    assert len(longest_batch(data, len(lengths) + 2)["labels"]) == len(lengths) + 2


def test_the_command_shows_where_memory_goes(
    tiny_run: list[str], in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("estimate", *tiny_run, "memory=8GB") == 0
    printed = capsys.readouterr().out
    for words in ("training everything", "activations", "optimizer state", "largest batch in 8.0 GB: data.batch_size="):
        assert words in printed
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("memory=abc", "E-MEMORY: memory=abc: give an amount such as 8GB"),
        ("memory=1MB", "E-MEMORY: not even a batch of one row fits 1.0 MB"),
        ("output=there.json", "E-OUTPUT: output=there.json: it exists"),
    ],
)
def test_what_cannot_be_is_told(override: str, says: str, tiny_run: list[str], refused: Callable[..., str]) -> None:
    Path("there.json").touch()
    assert says in refused("estimate", *tiny_run, override)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_of_another_machine_are_counted_if_their_memory_is_given(
    tiny_run: list[str], in_process: InProcess, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, found = ["estimate", *tiny_run, "trainer=fsdp"], {}
    for devices, nodes in ((2, 1), (8, 1), (4, 2)):
        there = [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}", "memory=8GB", "data.global_batch_size=16"]
        assert in_process(*command, *there, f"output={devices}.json") == 0
        found[devices] = json.loads(Path(f"{devices}.json").read_text())
    printed = capsys.readouterr().out
    assert "no GPU is here" in printed
    assert "the program itself" not in printed  # which is no memory of a GPU
    assert [found[devices]["batch_size"] for devices in (2, 8, 4)] == [8, 2, 2]
    assert found[8]["bytes"]["weights"] == found[4]["bytes"]["weights"] == found[2]["bytes"]["weights"] // 4
    assert in_process("estimate", *tiny_run, "trainer=ddp", "trainer.devices=4", "memory=8GB", "output=ddp.json") == 0
    received = 2 * 3 / 4 * json.loads(Path("ddp.json").read_text())["bytes"]["gradients"]
    assert f"in each step a process receives {human(received)} of gradients" in capsys.readouterr().out
    assert "E-DEVICES: trainer.devices=8 on 0 GPUs" in refused(*command, "trainer.devices=8")
    assert "E-DEVICES: trainer.devices=auto: no GPU is here to be counted" in refused(*command, "memory=8GB")


@pytest.mark.parametrize(
    ("given", "amount"),
    [("8GB", 8 * 10**9), ("1.5 gib", 1536 * 2**20), ("512MiB", 2**29), ("70k", 70_000), (1234, 1234), ("12b", 12)],
)
def test_amounts_of_memory(given: str | int, amount: int) -> None:
    assert parse_memory(given) == amount


@pytest.mark.parametrize("given", ["", "GB", "0GB", "-1GB", "8GBB", "8 PB", True, "i"])
def test_what_is_no_amount_of_memory(given: object) -> None:
    with pytest.raises(InputError, match="E-MEMORY"):
        parse_memory(given)


def test_a_run_keeps_the_batch_that_was_chosen(
    tiny_run: list[str], in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "auto_batch=true", "hydra.run.dir=run") == 0
    assert "auto_batch: data.batch_size=40, the largest that fits" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run" / ".hydra" / "config.yaml").read_text())
    assert (config["auto_batch"], config["data"]["batch_size"]) == (False, 40)  # all rows of train
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["batch_size"], summary["steps"]) == (40, 1)
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0  # E-RESUME if it chose anew
    assert "auto_batch" not in capsys.readouterr().out


def test_under_a_launcher_each_process_would_choose_for_itself(
    tiny: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="E-AUTO-BATCH"):
        with_largest_batch(config_of(tiny("text_classification")), [])


def test_a_batch_that_the_device_cannot_take_is_made_smaller() -> None:
    tried: list[int] = []

    def run(size: int, most: int = 33) -> None:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError

    assert largest_that_runs(run, 50) == 31
    assert tried == [50, 45, 41, 37, 34, 31]
    with pytest.raises(InputError, match="E-MEMORY"):
        largest_that_runs(lambda size: run(size, 0), 3)
