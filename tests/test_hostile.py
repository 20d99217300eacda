"""Folders of strangers: each is refused by name, at once, and nothing is written, imported or run."""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import loralight
from loralight.adapters import Lora
from loralight.artifacts.export import save_adapter
from loralight.artifacts.peft_format import peft_adapter
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration

from .warm import run_warm

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.bert.encoder.layer.0.attention.self.query"
A = f"{LAYER}.lora_A.weight"
RUNS = "__import__('os').system('touch ran')"


@pytest.fixture(scope="module")
def good(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that PEFT wrote, in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    config = LoraConfig(
        r=4, target_modules=["query"], modules_to_save=["classifier", "pooler.dense"], task_type="SEQ_CLS"
    )
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder


def config(**changes: Any) -> Callable[[Path], None]:
    """Other values in the config."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**content, **changes}))

    return spoil


def text(content: str | bytes) -> Callable[[Path], None]:
    """Another config altogether."""
    return lambda folder: (folder / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return spoil


def renamed(new: str) -> Callable[[Path], None]:
    return tensors(lambda found: found.update({new: found.pop(A)}))


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Another header over the same values."""

    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        change(found)
        written = json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something that is no file, in place of one."""

    def spoil(folder: Path) -> None:
        shutil.copy(folder / name, folder / "aside")
        (folder / name).unlink()
        make(folder / name)

    return spoil


def sparse(folder: Path) -> None:
    """A file that says it is 64 GB of one tensor, and takes no room on the disk."""
    size = 64 * 2**30
    head = json.dumps({A: {"dtype": "F32", "shape": [4, size // 16], "data_offsets": [0, size]}}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)


class Runs:
    """What a pickle of it does when it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def nested(depth: int) -> Any:
    return [] if depth == 0 else [nested(depth - 1)]


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    # what is no config
    "oversized": (config(revision="x" * 70_000), "E-ADAPTER"),
    "deep lists": (config(auto_mapping=nested(9)), "E-ADAPTER"),
    "bottomless": (text('{"a":' * 9_000), "E-ADAPTER"),
    "bottomless list": (text("[" * 60_000), "E-ADAPTER"),
    "not a number": (config(lora_alpha=float("nan")), "E-ADAPTER"),
    "infinity": (config(lora_alpha=float("inf")), "E-ADAPTER"),
    "more than any float": (text('{"peft_type": "LORA", "lora_alpha": 1e999}'), "E-ADAPTER"),
    "digits without end": (text('{"peft_type": "LORA", "r": ' + "9" * 60_000 + "}"), "E-ADAPTER"),
    "one key twice": (text('{"peft_type": "LORA", "r": 4, "r": 8}'), "E-ADAPTER"),
    "a list": (text("[]"), "E-ADAPTER"),
    "null": (text("null"), "E-ADAPTER"),
    "empty": (text(""), "E-ADAPTER"),
    "cut off": (text('{"peft_type": "LO'), "E-ADAPTER"),
    "bytes": (text(b"\xff\xfe\x00\x01"), "E-ADAPTER"),
    "UTF-16": (text('{"peft_type": "LORA"}'.encode("utf-16")), "E-ADAPTER"),
    "YAML": (text("peft_type: LORA\nr: 4\n"), "E-ADAPTER"),
    "a pickle for a config": (text(pickle.dumps(Runs())), "E-ADAPTER"),
    "config is a link": (instead(CONFIG, lambda file: file.symlink_to(file.with_name("aside"))), "E-ADAPTER"),
    "config is a link to a secret": (instead(CONFIG, lambda file: file.symlink_to("/etc/passwd")), "E-ADAPTER"),
    "config is a pipe": (instead(CONFIG, os.mkfifo), "E-ADAPTER"),
    "config is a folder": (instead(CONFIG, Path.mkdir), "E-ADAPTER"),
    "no type": (text("{}"), "E-PEFT"),
    # what a config says
    "a target": (config(_target_="os.system"), "E-ADAPTER"),
    "a target inside": (config(auto_mapping={"_target_": "os.system", "command": "touch ran"}), "E-ADAPTER"),
    "a partial": (config(loftq_config={"a": [{"_partial_": True}]}), "E-ADAPTER"),
    "unknown type": (config(peft_type="EVIL"), "E-PEFT"),
    "type is a list": (config(peft_type=["LORA"]), "E-PEFT"),
    "type is code": (config(peft_type=RUNS), "E-PEFT"),
    "a prompt": (config(peft_type="PROMPT_TUNING"), "E-PEFT"),
    "unknown key": (config(lora_alhpa=3), "E-PEFT: .*'lora_alpha'"),
    "code to import": (config(megatron_config={"a": 1}, megatron_core="hostile_module"), "E-PEFT"),
    "another base's weights": (config(init_lora_weights="pissa"), "E-PEFT"),
    "initialisation is code": (config(init_lora_weights={"eval": RUNS}), "E-PEFT"),
    "rank is a text": (config(r="4"), "E-PEFT"),
    "rank is a list": (config(r=[4]), "E-PEFT"),
    "rank is true": (config(r=True), "E-PEFT"),
    "rank 0": (config(r=0), "E-PEFT"),
    "rank below 0": (config(r=-4), "E-PEFT"),
    "rank of a billion": (config(r=10**9), "E-PEFT"),
    "rank of another": (config(r=8), "E-PEFT"),
    "alpha 0": (config(lora_alpha=0), "E-ALPHA"),
    "alpha below 0": (config(lora_alpha=-1), "E-ALPHA"),
    "alpha of 1e30": (config(lora_alpha=1e30), "E-PEFT"),
    "alpha of many digits": (config(lora_alpha=10**400), "E-ADAPTER"),
    "a rank of too many digits": (config(r=10**40), "E-ADAPTER"),
    "dropout 1": (config(lora_dropout=1.0), "E-DROPOUT"),
    "dropout is a text": (config(lora_dropout="0.1"), "E-PEFT"),
    "a pattern without end": (config(alpha_pattern={"(a+)+$": 3}), "E-PEFT"),
    "a rank's pattern without end": (config(rank_pattern={"(.*)*x": 4}), "E-PEFT"),
    "patterns with patterns": (config(alpha_pattern={f"a.*b.*{n}": 3 for n in range(3000)}), "E-PEFT"),
    "pattern is a list": (config(alpha_pattern=["a"]), "E-PEFT"),
    "pattern to a text": (config(rank_pattern={"query": "4"}), "E-PEFT"),
    "rslora is a text": (config(use_rslora="yes"), "E-PEFT"),
    "biases": (config(bias="all"), "E-PEFT"),
    "layers again": (config(layer_replication=[[0, 2]]), "E-PEFT"),
    "tokens": (config(trainable_token_indices=[1, 2]), "E-PEFT"),
    "parameters": (config(target_parameters=["word_embeddings.weight"]), "E-PEFT"),
    "experts": (config(arrow_config={"top_k": 3}), "E-PEFT"),
    "EVA": (config(eva_config={"rho": 2.0}), "E-PEFT"),
    "another task": (config(task_type="CAUSAL_LM"), "E-PEFT|E-TASK|E-CONFIG"),
    "no task": (config(task_type=None), "E-PEFT"),
    "task is a path": (config(task_type="../../text_classification"), "E-PEFT"),
    "LoHa of a billion": (config(peft_type="LOHA", r=10**9), "E-PEFT"),
    "weights of another method": (config(peft_type="OFT"), "E-"),
    # what is no file of tensors
    "a pickle for weights": (weights(lambda _: pickle.dumps(Runs())), "E-ADAPTER"),
    "a zip for weights": (weights(lambda _: b"PK\x03\x04" + bytes(64)), "E-ADAPTER"),
    "a byte short": (weights(lambda content: content[:-1]), "E-ADAPTER"),
    "a byte long": (weights(lambda content: content + b"x"), "E-ADAPTER"),
    "half": (weights(lambda content: content[: len(content) // 2]), "E-ADAPTER"),
    "only a length": (weights(lambda content: content[:8]), "E-ADAPTER"),
    "three bytes": (weights(lambda content: content[:3]), "E-ADAPTER"),
    "nothing": (weights(lambda _: b""), "E-ADAPTER"),
    "a header without end": (weights(lambda content: b"\xff" * 8 + content[8:]), "E-ADAPTER"),
    "a header of 50 MB": (weights(lambda _: struct.pack("<Q", 50 * 2**20) + b" " * 50 * 2**20), "E-ADAPTER"),
    "a deep header": (weights(lambda _: struct.pack("<Q", 90_000) + b'{"a":' * 18_000), "E-ADAPTER"),
    "64 GB of nothing": (sparse, "E-"),
    "weights are a link": (instead(WEIGHTS, lambda file: file.symlink_to(file.with_name("aside"))), "E-ADAPTER"),
    "weights are a pipe": (instead(WEIGHTS, os.mkfifo), "E-ADAPTER"),
    "weights are a device": (instead(WEIGHTS, lambda file: file.symlink_to("/dev/zero")), "E-ADAPTER"),
    "weights are a folder": (instead(WEIGHTS, Path.mkdir), "E-ADAPTER"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "E-ADAPTER"),
    "a pickle beside": (
        lambda folder: [(folder / WEIGHTS).unlink(), (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs()))],
        "E-ADAPTER",
    ),
    # what a header says
    "a name twice": (
        weights(lambda content: struct.pack("<Q", 26) + b'{"a": {}, "a": {}}        ' + content[8:]),
        "E-ADAPTER",
    ),
    "no shape": (header(lambda found: found[A].pop("shape")), "E-ADAPTER"),
    "a shape below 0": (header(lambda found: found[A].update(shape=[-4, 32])), "E-ADAPTER"),
    "a shape of texts": (header(lambda found: found[A].update(shape=["4", 32])), "E-ADAPTER"),
    "a shape beyond all memory": (
        header(lambda found: found["base_model.model.classifier.weight"].update(shape=[2**31, 2**31])),
        "E-ADAPTER",
    ),
    "a shape that does not fit": (header(lambda found: found[A].update(shape=[4, 31])), "E-"),
    "places that overlap": (header(lambda found: found[A].update(data_offsets=[4, 516])), "E-ADAPTER"),
    "places beyond the end": (header(lambda found: found[A].update(data_offsets=[10**12, 10**12 + 512])), "E-ADAPTER"),
    "more names than one reads": (
        header(lambda found: found.update({f"{LAYER}.more{n}": found[A] for n in range(60_000)})),
        "E-ADAPTER",
    ),
    "bytes for numbers": (header(lambda found: found[A].update(dtype="U8", shape=[4, 128])), "E-ADAPTER"),
    "an unknown kind of number": (header(lambda found: found[A].update(dtype="EVIL")), "E-ADAPTER"),
    # what the tensors are
    "64-bit floats": (tensors(lambda found: found.update({A: found[A].double()})), "E-ADAPTER"),
    "8-bit integers": (tensors(lambda found: found.update({A: found[A].to(torch.int8)})), "E-ADAPTER"),
    "a count": (tensors(lambda found: found.update({A: torch.tensor(4)})), "E-"),
    "nan": (tensors(lambda found: found[A].view(-1)[5].fill_(float("nan"))), "E-ADAPTER"),
    "inf": (tensors(lambda found: found[A].view(-1)[5].fill_(float("inf"))), "E-ADAPTER"),
    "inf in half precision": (
        tensors(lambda found: found.update({A: torch.full((4, 32), float("-inf")).half()})),
        "E-ADAPTER",
    ),
    "base weights": (
        tensors(
            lambda found: found.update(
                {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(30522, 32)}
            )
        ),
        "E-ADAPTER-KEYS",
    ),
    "an adapted layer's own weight": (
        tensors(lambda found: found.update({f"{LAYER}.weight": torch.zeros(32, 32)})),
        "E-ADAPTER-KEYS",
    ),
    "base weights under PEFT's name": (
        tensors(lambda found: found.update({f"{LAYER}.base_layer.weight": torch.zeros(32, 32)})),
        "E-ADAPTER-KEYS",
    ),
    "one too many": (tensors(lambda found: found.update(more=torch.zeros(2))), "E-ADAPTER"),
    "one missing": (tensors(lambda found: found.pop(A)), "E-"),
    "no head": (tensors(lambda found: found.pop("base_model.model.classifier.weight")), "E-ADAPTER-KEYS"),
    "no tensors": (tensors(lambda found: found.clear()), "E-PEFT"),
    "another shape": (tensors(lambda found: found.update({A: torch.zeros(4, 31)})), "E-ADAPTER-KEYS"),
    "another head": (
        tensors(lambda found: found.update({"base_model.model.classifier.weight": torch.zeros(7, 32)})),
        "E-ADAPTER-KEYS",
    ),
    "a layer that is not there": (renamed(A.replace("layer.0", "layer.7")), "E-TARGET-NONE"),
    "a path for a name": (renamed("base_model.model/../../../etc/passwd"), "E-ADAPTER"),
    "dots for a name": (renamed("base_model.model....lora_A.weight"), "E-ADAPTER"),
    "a long name": (renamed(f"base_model.model.{'x' * 65}.lora_A.weight"), "E-ADAPTER"),
    "a name without end": (renamed("base_model.model." + "x." * 600 + "lora_A.weight"), "E-ADAPTER"),
    "a name in other letters": (renamed("base_model.model.bеrt.lora_A.weight"), "E-ADAPTER"),  # noqa: RUF001
    "a name that colours the terminal": (renamed("base_model.model.\x1b[31m.lora_A.weight"), "E-ADAPTER"),
    "a special method": (renamed("base_model.model.__class__.lora_A.weight"), "E-TARGET-NONE"),
}


def watched(parent: Path, good: list[dict[str, Any]], hostile: list[dict[str, Any]], *may_read: str) -> list[Any]:
    """What became of each case, as a watched process tells."""
    (parent / "hostile_module.py").write_text("open('ran', 'w')")
    (parent / "cases.json").write_text(json.dumps([{"good": good, "hostile": hostile}, [str(parent), *may_read]]))
    script, paths = Path(__file__).with_name("hostile.py"), os.pathsep.join([str(parent), *sys.path])
    done = run_warm([str(script), "cases.json"], cwd=parent, env={**os.environ, "PYTHONPATH": paths}, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not list(parent.rglob("ran"))
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def outcomes(good: Path, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each adapter of PEFT's."""
    parent = tmp_path_factory.mktemp("hostile")
    folders = []
    for number, (spoil, _) in enumerate(HOSTILE.values()):
        folders.append(shutil.copytree(good, parent / str(number)))
        spoil(folders[-1])
    cases = [
        {"folder": str(folder), "base": tiny_bert, "arguments": {"labels": ["a", "b", "c"]}}
        for folder in [good, *folders]
    ]
    return dict(zip(HOSTILE, watched(parent, cases[:1], cases[1:], tiny_bert, str(good)), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_name_and_does_nothing(outcomes: dict[str, Any], name: str) -> None:
    found = outcomes[name]
    code, _, more = HOSTILE[name][1].partition(": ")
    assert found["outcome"].startswith(tuple(code.split("|"))), found
    assert not more or more.removeprefix(".*") in found["outcome"]
    assert found["seen"] == []
    assert found["modules"] == []
    assert len(found["outcome"]) < 1000 and found["outcome"].isprintable()


def test_there_are_many() -> None:
    assert len(HOSTILE) >= 60


# Base models, adapters of ours on them, and commands

EVIL = """
open("ran", "w")
from transformers import BertConfig as Config, BertForSequenceClassification as Model, BertTokenizer as Tokenizer
"""
AUTO = "AutoModelForSequenceClassification"
WITHOUT_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def said(file: str = "config.json", **changes: Any) -> Callable[[Path], None]:
    """Other values in one of a model's JSON files."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps({**content, **changes}))

    return spoil


def written(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def pickled(name: str, content: bytes = b"") -> Callable[[Path], None]:
    """A pickle in the place of the weights."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content or pickle.dumps(Runs()))

    return spoil


def sharded(shard: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))

    return spoil


def piped(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


KERNEL = "kernels-community/flash-attn2"
MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    # code
    "code for the config": (said(model_type="evil", auto_map={"AutoConfig": "evil.Config"}), "E-REMOTE-CODE"),
    "code for the model": (said(auto_map={AUTO: "evil.Model"}), "E-REMOTE-CODE"),
    "code for an unknown model": (
        said(model_type="evil", auto_map={"AutoConfig": "evil.Config", AUTO: "evil.Model"}),
        "E-REMOTE-CODE",
    ),
    "code of another repository": (said(auto_map={AUTO: "evil/repository--evil.Model"}), "E-REMOTE-CODE"),
    "code inside": (said(text_config={"auto_map": {"AutoModel": "evil.Model"}}), "E-REMOTE-CODE"),
    "code for the tokenizer": (
        said("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
        "E-REMOTE-CODE",
    ),
    "code for a tokenizer of old": (
        said("tokenizer_config.json", auto_map=["evil.Tokenizer", None], tokenizer_class="Evil"),
        "E-REMOTE-CODE",
    ),
    "code for a processor": (
        said("preprocessor_config.json", auto_map={"AutoProcessor": "evil.Tokenizer"}),
        "E-REMOTE-CODE",
    ),
    "another config": (said(configuration_files=["config.4.0.0.json"]), "E-MODEL"),
    "a model for a tokenizer": (said("tokenizer_config.json", tokenizer_class="AutoModelForCausalLM"), "E-MODEL"),
    "a tokenizer that asks for itself": (said("tokenizer_config.json", tokenizer_class="AutoTokenizer"), "E-MODEL"),
    "a retriever for a tokenizer": (said(tokenizer_class="RagRetriever"), "E-MODEL"),
    "a number for a tokenizer": (said("tokenizer_config.json", tokenizer_class=3), "E-MODEL"),
    # kernels
    "a kernel for attention": (said(attn_implementation=KERNEL), "E-REMOTE-CODE"),
    "a kernel under a hidden name": (said(_attn_implementation_internal="evil/kernel"), "E-REMOTE-CODE"),
    "a kernel for a part": (said(attn_implementation={"": "sdpa", "text_config": "a/b@c:d"}), "E-REMOTE-CODE"),
    "a kernel with a prefix": (said(_attn_implementation=f"paged|{KERNEL}"), "E-REMOTE-CODE"),
    "a kernel for experts": (said(experts_implementation="sonicmoe"), "E-REMOTE-CODE"),
    "kernels of a quantiser": (said(quantization_config={"quant_method": "mxfp4"}), "E-REMOTE-CODE"),
    "a quantiser without a name": (said(quantization_config={"a": 1}), "E-REMOTE-CODE"),
    # pickles
    "a pickle": (pickled("pytorch_model.bin"), "E-PICKLE"),
    "a pickle in parts": (
        pickled("pytorch_model.bin.index.json", b'{"weight_map": {"a": "pytorch_model.bin"}}'),
        "E-PICKLE",
    ),
    "a pickle called safetensors": (written("model.safetensors", pickle.dumps(Runs())), "E-MODEL"),
    "a pickle as the weights that are meant": (
        lambda folder: [
            said(transformers_weights="adapter_model.bin")(folder),
            (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs())),
        ],
        "E-PICKLE",
    ),
    "weights elsewhere": (said(transformers_weights="../outside.safetensors"), "E-MODEL"),
    "a part elsewhere": (sharded("../outside.safetensors"), "E-MODEL"),
    "a part that is not there": (sharded("none.safetensors"), "E-MODEL"),
    # adapters
    "an adapter in it": (said("adapter_config.json", base_model_name_or_path="evil/model"), "E-MODEL"),
    "an adapter in its place": (
        lambda folder: [
            (folder / "config.json").rename(folder / "adapter_config.json"),
            said("adapter_config.json", base_model_name_or_path="/etc")(folder),
        ],
        "E-MODEL",
    ),
    # sizes
    "a million layers": (said(num_hidden_layers=10**6), "E-MODEL"),
    "a trillion layers": (said(num_hidden_layers=10**12), "E-MODEL"),
    "many layers": (said(num_hidden_layers=90_000), "E-MODEL"),
    "a billion layers of Qwen's": (said(model_type="qwen2", num_hidden_layers=10**9), "E-MODEL"),
    "layers by another name": (said(model_type="gpt2", n_layer=10**9), "E-MODEL"),
    "a billion labels": (said(num_labels=10**9), "E-MODEL"),
    "a trillion words": (said(vocab_size=10**12), "E-MODEL"),
    "a hundred million words": (said(vocab_size=10**8), "E-MODEL"),
    "a trillion positions": (said(max_position_embeddings=10**12), "E-MODEL"),
    "a million wide": (said(hidden_size=2 * 10**6), "E-MODEL"),
    "wide inside": (said(intermediate_size=10**7), "E-MODEL"),
    "digits without end": (written("config.json", b'{"model_type": "bert", "a": ' + b"9" * 5000 + b"}"), "E-MODEL"),
    # what is no config
    "a text for a number": (said(hidden_size="x"), "E-MODEL"),
    "fewer layers than none": (said(num_hidden_layers=-1), "E-"),
    "no heads": (said(num_attention_heads=0), "E-MODEL"),
    "not a number": (said(hidden_size=float("nan")), "E-MODEL"),
    "a list": (written("config.json", b"[]"), "E-MODEL"),
    "cut off": (written("config.json", b'{"model_type": "be'), "E-MODEL"),
    "bottomless": (written("config.json", b'{"a":' * 100_000), "E-MODEL"),
    "oversized": (written("config.json", b'{"a": "' + b"x" * 2**24 + b'"}'), "E-MODEL"),
    "a pipe": (piped("config.json"), "E-MODEL"),
    "weights are a pipe": (piped("model.safetensors"), "E-MODEL"),
    "the tokenizer is a pipe": (piped("tokenizer.json"), "E-MODEL"),
    "a file is a device": (
        lambda folder: (folder / "generation_config.json").symlink_to("/dev/zero"),
        "E-MODEL",
    ),
    "no tokenizer": (written("tokenizer.json", b'{"version": "1.0"'), "E-MODEL"),
    "half a file of weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "E-MODEL",
    ),
}


def seal(folder: Path) -> None:
    """Make an adapter's manifest anew, as one who means harm would."""
    files = [file for file in folder.iterdir() if file.name != "manifest.json" and file.is_file()]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))


def recipe(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Another recipe, under a manifest that fits it."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / "loralight.json").read_text())
        change(found)
        (folder / "loralight.json").write_text(json.dumps(found))
        seal(folder)

    return spoil


def argument(part: str, **changes: Any) -> Callable[[Path], None]:
    return recipe(lambda found: found[part]["arguments"].update(changes))


OURS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rank of a billion": (argument("adapter", rank=10**9), "E-ADAPTER"),
    "rank of ten million": (argument("adapter", rank=10**7), "E-ADAPTER"),
    "a layer's rank of a billion": (argument("adapter", rank_pattern={"query": 10**9}), "E-ADAPTER"),
    "7,000 labels": (argument("task", labels=[str(n) for n in range(7000)]), "E-ADAPTER-KEYS"),
    "alpha infinite": (argument("adapter", alpha=float("inf")), "E-ADAPTER"),
    "code of the model that it names": (argument("task", checkpoint="evil"), "E-REMOTE-CODE"),
    "its own word for code": (
        lambda folder: [
            recipe(lambda found: found.update(model={"trust_remote_code": True}))(folder),
            argument("task", checkpoint="evil")(folder),
        ],
        "E-REMOTE-CODE",
    ),
    "code as an argument": (argument("task", trust_remote_code=True), "E-CONFIG"),
    "not sealed": (
        lambda folder: [argument("adapter", alpha=900)(folder), (folder / "manifest.json").write_text("{}")],
        "E-CKPT-HASH",
    ),
    "the manifest is a pipe": (piped("manifest.json"), "E-CKPT-HASH"),
    "the weights are a pipe": (piped(WEIGHTS), "E-CKPT-HASH"),
}

COMMANDS: dict[str, tuple[list[str], str]] = {
    "predict, by a model with code": (["run=ours", "checkpoint=evil"], "E-REMOTE-CODE"),
    "predict, by a pickle": (["run=ours", "checkpoint=pickle"], "E-PICKLE"),
    "predict, by several": (["run=[ours, ours/]", "checkpoint=evil"], "E-REMOTE-CODE"),
    "predict, by a damaged folder": (["run=damaged"], "E-CKPT-HASH"),
    "predict, with a word that is none": (["run=ours", "model.trust_remote_code=1"], "E-CONFIG"),
}


def trained(base: str, folder: Path) -> Path:
    """An adapter of ours, as after training."""
    own, lora = {"checkpoint": base, "labels": ["a", "b"], "max_length": 16}, {"targets": "query", "rank": 4}
    task = TextClassification(**own, adapter=Lora(**lora))
    task.configure_model()
    made = {"task": {"name": "text_classification", "arguments": own}, "adapter": {"name": "lora", "arguments": lora}}
    save_adapter(task, folder, recipe=made, metrics={})
    return folder


def talking(tokenizer: str, parent: Path) -> tuple[Path, Path]:
    """A tiny language model whose tokenizer has a chat template, and an adapter for it."""
    base = parent / "talking"
    spoken = AutoTokenizer.from_pretrained(tokenizer)
    spoken.eos_token = "[SEP]"
    spoken.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    spoken.save_pretrained(base)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(spoken), **sizes)).save_pretrained(base)
    own, lora = {"checkpoint": str(base), "columns": {"messages": "messages"}}, {"targets": "q_proj", "rank": 2}
    task = TextGeneration(**own, adapter=Lora(**lora))
    task.configure_model()
    made = {"task": {"name": "text_generation", "arguments": own}, "adapter": {"name": "lora", "arguments": lora}}
    save_adapter(task, parent / "talker", recipe=made, metrics={})
    return base, parent / "talker"


def copied(origin: Path | str, target: Path, spoil: Callable[[Path], Any]) -> Path:
    shutil.copytree(origin, target)
    (target / "evil.py").write_text(EVIL)
    spoil(target)
    return target


@pytest.fixture(scope="module")
def more_outcomes(good: Path, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of adapters of ours, of base models, and of commands."""
    parent = tmp_path_factory.mktemp("hostile_models")
    ours, (base, talker) = trained(tiny_bert, parent / "ours"), talking(tiny_bert, parent)
    copied(tiny_bert, parent / "evil", MODELS["code for the model"][0])
    copied(tiny_bert, parent / "pickle", MODELS["a pickle"][0])
    copied(ours, parent / "damaged", lambda folder: (folder / "manifest.json").unlink())
    (parent / "texts.txt").write_text("a fine film")
    endless = copied(base, parent / "endless", written("chat_template.jinja", WITHOUT_END.encode()))
    predict = {"inputs": ["hi"]}
    good_cases: list[dict[str, Any]] = [
        {"folder": str(ours), "inputs": ["a fine film"]},
        {"folder": str(talker), **predict},
        {"command": ["predict", "run=ours", "input=texts.txt"]},
        {"command": ["predict", "run=[ours]", "input=texts.txt"]},
    ]
    cases: dict[str, dict[str, Any]] = {}
    for number, (name, (spoil, _)) in enumerate(MODELS.items()):
        (parent / f"model{number}").mkdir()
        folder = copied(tiny_bert, parent / f"model{number}" / "model", spoil)
        cases[name] = {"folder": str(ours), "base": str(folder), "inputs": ["a fine film"]}
    for number, (name, (spoil, _)) in enumerate(OURS.items()):
        cases[f"ours: {name}"] = {"folder": str(copied(ours, parent / f"ours{number}", spoil))}
    for name, (command, _) in COMMANDS.items():
        cases[name] = {"command": ["predict", "input=texts.txt", *command]}
    cases["a template without end"] = {"folder": str(talker), "base": str(endless), **predict}
    return dict(zip(cases, watched(parent, good_cases, list(cases.values()), tiny_bert), strict=True))


EXPECTED = {
    **{name: code for name, (_, code) in (MODELS | COMMANDS).items()},
    **{f"ours: {name}": code for name, (_, code) in OURS.items()},
    "a template without end": "E-CHAT: .*it goes on for more than",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_hostile_model_or_adapter_is_refused_by_name_and_does_nothing(
    more_outcomes: dict[str, Any], name: str
) -> None:
    found = more_outcomes[name]
    code, _, more = EXPECTED[name].partition(": .*")
    assert found["outcome"].startswith(code) and more in found["outcome"], found
    assert found["seen"] == []
    assert found["modules"] == []
    assert len(found["outcome"]) < 1000 and found["outcome"].isprintable()


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut, doubled, or replaced by what breaks parsers."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(changed)), draw.randint(1, 12)
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = draw.choice(
                [b"NaN", b"1e999", b"-1", b"[[", b"{}", b"null", b"true", b'"', b"\0"]
            )
        elif kind == 4:
            changed[at : at + 1] = str(draw.choice([0, 1, 7, 2**31, 2**64, 10**30])).encode()
        else:
            changed[at : at + length] = draw.randbytes(length)
        changed = changed or bytearray(b"{")
    return bytes(changed)


def fuzz(good: Path, base: str, folder: Path, count: int, seed: int) -> tuple[int, int]:
    """How many of ``count`` spoilt folders are refused by name, and how many are taken; anything else raises."""
    draw, kinds = random.Random(seed), ["LORA", "LORA", "LOHA", "LOKR", "OFT", "IA3", "VERA", "LN_TUNING"]
    settings, content = json.loads((good / CONFIG).read_text()), (good / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    refused = taken = 0
    for number in range(count):
        some = {key: settings[key] for key in settings if draw.random() < 0.9} | {"peft_type": draw.choice(kinds)}
        written = json.dumps(some).encode()
        spoil_config = draw.random() < 0.6
        (folder / CONFIG).write_bytes(mutate(written, draw) if spoil_config else written)
        (folder / WEIGHTS).write_bytes(content if spoil_config else mutate(content[:end], draw) + content[end:])
        try:
            peft_adapter(folder)
            if number % 20 == 0:
                loralight.load(folder, base=base, arguments={"labels": ["a", "b", "c"]}, device="cpu")
            taken += 1
        except InputError:
            refused += 1
    return refused, taken


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_whatever_is_in_a_file_it_is_read_or_refused_by_name(
    good: Path, tiny_bert: str, tmp_path: Path, count: int
) -> None:
    refused, taken = fuzz(good, tiny_bert, tmp_path, count, seed=count)
    assert refused + taken == count
    assert refused > count / 2
