"""The plugins in ``examples/`` keep what tasks promise; they train and predict where they lie, and can be installed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralight.config.build import build_data, check_config
from loralight.config.composition import compose, plain
from loralight.config.local_packages import VARIABLE
from loralight.config.plugins import use_folder
from loralight.testing import TaskContract

EXAMPLES = sorted(Path(__file__).resolve().parent.parent.glob("examples/*"))
ON_A_TINY_BERT = ("question_answering", "sentence_embeddings")  # the others' tests bring a tiny model of their own
INSTALL = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target=site"]


@pytest.fixture(scope="module", autouse=True)
def plugins_of_this_module() -> Iterator[None]:
    """Later tests find no plugin of these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, os.environ.get(VARIABLE, ""))
        for example in EXAMPLES:
            patch.syspath_prepend(str(example))
        yield


def own_tests(example: Path) -> dict[str, Any]:
    """What an example's test file defines."""
    (file,) = (example / "tests").glob("test_*.py")
    spec = importlib.util.spec_from_file_location(f"examples_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: thing for name, thing in vars(module).items() if getattr(thing, "__module__", "") == spec.name}


def on_a_tiny_bert(kind: type[TaskContract]) -> type[TaskContract]:
    class Small(kind):  # type: ignore[valid-type,misc]
        @pytest.fixture(scope="class", autouse=True)
        @classmethod
        def small(cls, tiny_bert: str) -> None:
            cls.overrides = [*cls.overrides, f"model.checkpoint='{tiny_bert}'", "model.max_length=64"]

    return Small


for folder in EXAMPLES:
    for name, thing in own_tests(folder).items():
        if isinstance(thing, type) and folder.name in ON_A_TINY_BERT:
            thing = on_a_tiny_bert(thing)
        if name.startswith(("Test", "test_")):
            globals()[name] = thing


def test_each_example_has_a_contract() -> None:
    contracts = [thing for thing in globals().values() if isinstance(thing, type) and issubclass(thing, TaskContract)]
    assert len(EXAMPLES) >= 3 and len(set(contracts) - {TaskContract}) >= len(EXAMPLES)


@pytest.fixture
def tiny_model(example: Path, tiny_bert: str, tmp_path: Path) -> str:
    """The model of the example's tests."""
    if example.name in ON_A_TINY_BERT:
        return tiny_bert
    own_tests(example)["save_tiny_model"](tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: str(folder.name))
def test_an_example_has_the_settings_of_every_task_without_a_plus(example: Path) -> None:
    use_folder(example / example.name)
    given = ["task.quantize=torchao/int8", "task.head_lr=0.01", "task.batch_norm=frozen", "task.base_dropout=false"]
    given += ["data.validation_fraction=0.2", "data.num_workers=0", "data.encoding=latin-1", "data.limit_rows=8"]
    config = plain(compose("train", [f"task={example.name}", *given, "trainer=cpu", "~callbacks", "~logger"]))
    assert (config["task"].pop("quantize"), config["data"]["limit_rows"]) == ("torchao/int8", 8)
    check_config(config)  # without the packer, which may not be installed


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: str(folder.name))
def test_an_example_trains_and_predicts_from_its_folder(
    example: Path, tiny_model: str, in_process: Callable[..., int], tmp_path: Path
) -> None:
    task = f"task={example.name}"
    given = ["--plugin-dir", str(example / example.name)]
    settings = [task, f"model.checkpoint='{tiny_model}'", "model.max_length=64", "data.limit_rows=8"]
    small = ["data.batch_size=4", "trainer=cpu", "trainer.max_epochs=1", "hydra.run.dir=run"]
    assert in_process("train", *given, *settings, *small) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
    ((asked, _),) = build_data(plain(compose("train", [*settings, "~callbacks", "~logger"]))).examples(1)
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
    (tmp_path / "asked.txt").write_text(str(asked))
    source = "asked.txt" if isinstance(asked, str) else "asked.jsonl"
    assert in_process("predict", *given, "run=run", f"input={source}", "output=answers.jsonl") == 0
    (answer,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(answer)


@pytest.mark.slow
def test_pairs_of_two_processes_are_one_another_s_negatives(
    in_process: Callable[..., int], tiny_bert: str, tmp_path: Path
) -> None:
    """Of 9 rows the last is in a batch by itself, in which the second process has none of its own."""
    lines = [f"cup number {number},{'tea ' * (number % 4 + 1)}{number}" for number in range(9)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second", *lines]))
    (example,) = (folder for folder in EXAMPLES if folder.name == "sentence_embeddings")
    given = ["--plugin-dir", str(example / example.name), "task=sentence_embeddings", "data.path=null"]
    given += ["data.train=pairs.csv", "data.validation=pairs.csv", f"model.checkpoint='{tiny_bert}'"]
    given += ["model.max_length=16", "task.base_dropout=false", "optimizer.lr=0.01", "trainer.max_epochs=2"]
    assert in_process("train", *given, "trainer=ddp_cpu", "data.batch_size=4", "hydra.run.dir=two") == 0
    assert in_process("train", *given, "trainer=cpu", "data.batch_size=8", "hydra.run.dir=one") == 0
    one, two = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    told = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")]
    assert [run["steps"] for run in told] == [4, 4]


def test_the_examples_can_be_installed_and_are_found(
    run_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for example in EXAMPLES:  # setuptools writes beside the sources
        shutil.copytree(example, tmp_path / example.name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    installed = {"PYTHONPATH": f"site:{os.environ.get('PYTHONPATH', '')}", VARIABLE: ""}
    run = {"cwd": tmp_path, "env": {**os.environ, **installed}}
    done = run_command([*INSTALL, *(f"./{example.name}" for example in EXAMPLES)], **run)
    assert done.returncode == 0, done.stderr
    for example in EXAMPLES:
        files = {file.relative_to(example) for file in (example / example.name).rglob("*.*")}
        held = {file for file in files if "__pycache__" not in file.parts}
        assert all((tmp_path / "site" / file).is_file() for file in held)
        shutil.rmtree(tmp_path / example.name)
    done = run_command([sys.executable, "-m", "loralight", "tasks"], **run)
    assert done.returncode == 0 and "broken" not in done.stdout, done.stdout + done.stderr
    for example in EXAMPLES:
        assert f"from: loralight-{example.name.replace('_', '-')} 0.1.0" in done.stdout
