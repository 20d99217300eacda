"""`loralight combine`: a weighted sum of runs, and `loralight predict` from several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loralight
from loralight.adapters import LoraLayer

InProcess = Callable[..., int]
Refused = Callable[..., str]
TEXTS = ["a fine film", "a dull film", "joy"]


@pytest.fixture(scope="module")
def runs(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two adapters with labels of their own."""
    from loralight.adapters import Lora
    from loralight.tasks.text_classification import TextClassification

    folders = []
    for name, labels in {"films": ["bad", "good"], "food": ["cold", "hot", "warm"]}.items():
        adapter = Lora(targets=["query", "value"], rank=2)
        task = TextClassification(checkpoint=tiny_bert, labels=labels, max_length=16, adapter=adapter)
        task.configure_model()
        for tensor in task.trainable_tensors().values():
            torch.nn.init.normal_(tensor, std=0.5)
        folders.append(tmp_path_factory.mktemp("runs") / name)
        task.save(folders[-1])
    return folders


@pytest.fixture
def inputs(tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return "input=texts.txt"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_sum_is_written_and_its_error_told(
    runs: list[Path], in_process: InProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [f"runs=['{runs[0]}','{runs[1]}']", "weights=[1,-0.5]"]
    assert in_process("combine", *given, "output=exact") == 0
    assert "exact: 4 layers" in (told := capsys.readouterr().out) and "0 in the worst layer" in told
    ranks = {layer.rank for layer in loralight.load("exact", device="cpu").modules() if isinstance(layer, LoraLayer)}
    assert ranks == {4}
    assert in_process("combine", *given, "output=less", "rank=2") == 0
    assert "less: 4 layers" in (told := capsys.readouterr().out) and "0 in the worst layer" not in told
    ranks = {layer.rank for layer in loralight.load("less", device="cpu").modules() if isinstance(layer, LoraLayer)}
    assert ranks == {2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact", "less"]  # nothing else


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ("weights=[1]", "E-WEIGHTS"),
        ("weights=[1,true]", "E-WEIGHTS"),
        ("weights=[1,a]", "E-WEIGHTS"),
        ("weights=[0,0]", "E-WEIGHTS"),
        ("weights=0.5", "E-WEIGHTS"),
        ("rank=0", "E-RANK"),
        ("rank=2.5", "E-RANK"),
        ("output=.", "E-OUTPUT"),
    ],
)
def test_what_cannot_be_summed_is_told(changed: str, code: str, runs: list[Path], refused: Refused) -> None:
    given = {"runs": f"runs=['{runs[0]}','{runs[1]}']", "weights": "weights=[1,2]", "output": "output=sum"}
    given |= {changed.partition("=")[0]: changed}
    assert code in refused("combine", *given.values())


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_each_input_is_answered_by_each_adapter_which_is_named(
    named: bool,
    batch_size: int,
    runs: list[Path],
    inputs: str,
    in_process: InProcess,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["films", "food"] if named else [str(run) for run in runs]
    run = f"run={{films:'{runs[0]}',food:'{runs[1]}'}}" if named else f"run=['{runs[0]}','{runs[1]}']"
    assert in_process("predict", run, inputs, f"batch_size={batch_size}", "device=cpu") == 0
    found = lines(capsys.readouterr().out)
    assert [(line["text"], line["adapter"]) for line in found] == [(text, name) for text in TEXTS for name in names]
    for name, folder in zip(names, runs, strict=True):
        alone = loralight.load(folder, device="cpu").predict(TEXTS, batch_size=batch_size)
        assert [{**line} for line in found if line["adapter"] == name] == [{"adapter": name, **a} for a in alone]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (["run=[]"], "E-RUN"),
        (["run=[nowhere]"], "E-RUN"),
        (["stream=true"], "E-STREAM"),
        (["options.temperature=1"], "E-CONFIG"),
    ],
    ids=str,
)
def test_what_several_adapters_cannot_predict_is_told(
    changed: list[str], code: str, runs: list[Path], inputs: str, refused: Refused
) -> None:
    given = {o.partition("=")[0]: o for o in [f"run=['{runs[0]}','{runs[1]}']", inputs, *changed]}
    assert code in refused("predict", *given.values())


def test_one_run_given_twice_is_a_mistake(runs: list[Path], inputs: str, refused: Refused) -> None:
    assert "E-RUN" in refused("predict", f"run=['{runs[0]}','{runs[0]}']", inputs)
