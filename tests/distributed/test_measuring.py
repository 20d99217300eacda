"""`loralight evaluate`, `predict` and `merge` on several processes give what one process does."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from loralight.adapters import Lora
from loralight.commands import evaluate
from loralight.tasks.text_generation.module import TextGeneration

pytestmark = pytest.mark.usefixtures("warm_ranks")

InProcess = Callable[..., int]
Refused = Callable[..., str]
FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]


def several(number: int) -> list[str]:
    return ["trainer=ddp_cpu", f"trainer.devices={number}"]


FAILING = """
import os
from loralight.tasks.text_classification.module import TextClassification

class Failing(TextClassification):
    def predict_batch(self, inputs):
        if os.environ.get("RANK") == "1":
            raise ValueError("met its fate")
        return super().predict_batch(inputs)
"""


@pytest.fixture(scope="module")
def run_of_two(folder_of_runs: tuple[Path, InProcess], tiny_bert: str, texts: Path) -> Path:
    """A finished run of two processes."""
    folder, command = folder_of_runs
    given = ["data=text_classification", f"data.path='{texts}'", f"model.checkpoint='{tiny_bert}'"]
    given += ["model.max_length=16", "trainer.max_epochs=1", "optimizer.lr=0.01", "probe=false"]
    assert command("train", *given, *several(2), "hydra.run.dir=run") == 0
    return folder / "run"


@pytest.fixture
def run(run_of_two: Path, tmp_path: Path) -> Path:
    """The run, copied into the folder ``run``, and files of rows for it: seven, and one."""
    shutil.copytree(run_of_two, tmp_path / "run", symlinks=True)
    texts = [("a fine film", "good"), ("cold", "bad"), ("what a mess and so much more of it than that", "bad")]
    for name, rows in {"seven": [*texts, *texts, texts[0]], "one": texts[:1]}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *((f"{text} {n}", y) for n, (text, y) in enumerate(rows))])
    return tmp_path / "run"


def read(file: Path) -> Any:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_metrics_count_each_row_once(run: Path, in_process: InProcess, tmp_path: Path) -> None:
    line = ["evaluate", "run=run", "data.test=seven.csv", "data.eval_batch_size=2"]
    before = sorted(run.rglob("*"))
    assert in_process(*line, "output=one.json") == 0
    assert in_process(*line, *several(3), "base=false", "output=three.json") == 0
    one, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "three"))
    assert three.keys() == one.keys() and three["test/accuracy"] == one["test/accuracy"]  # of sevenths
    assert three == pytest.approx(one, rel=1e-5)
    assert sorted(run.rglob("*")) == before


def test_sharded_weights_measure_the_same(run: Path, in_process: InProcess, tmp_path: Path) -> None:
    line = ["evaluate", "run=run", "data.test=seven.csv", "data.eval_batch_size=2"]
    assert in_process(*line, "output=one.json") == 0
    assert in_process(*line, *FSDP, "output=two.json") == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("file", "given"), [("seven", several(2)), ("one", several(2)), ("seven", several(3)), ("seven", FSDP)], ids=str
)
def test_predictions_are_in_the_order_of_the_inputs(
    file: str, given: list[str], run: Path, in_process: InProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["predict", "run=run", f"input={file}.csv", "batch_size=2"]
    assert in_process(*line, "device=cpu", "output=one.jsonl") == 0
    assert in_process(*line, *given, "output=several.jsonl") == 0
    assert capfd.readouterr() == ("", "")
    one, several_ = (read(tmp_path / f"{name}.jsonl") for name in ("one", "several"))
    assert [answer["text"] for answer in several_] == [answer["text"] for answer in one]
    assert [answer["label"] for answer in several_] == [answer["label"] for answer in one]
    for answer, expected in zip(several_, one, strict=True):
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_and_its_certificate_are_those_of_one_process(
    dtype: str, run: Path, in_process: InProcess, tmp_path: Path
) -> None:
    line = ["merge", "run=run", "data.test=seven.csv", "split=test", "data.eval_batch_size=2", "device=cpu"]
    line += [f"dtype={dtype}", "tolerance=0.1"]
    assert in_process(*line, "output=one") == 0
    assert in_process(*line, *several(2), "output=two") == 0
    one, two = (json.loads((tmp_path / name / "merge_certificate.json").read_text()) for name in ("one", "two"))
    metrics, expected = two.pop("metrics"), one.pop("metrics")
    assert two == one and len(two["probe"]["rows"]) > 1
    for state, scores in expected.items():
        assert metrics[state] == (scores if state == "split" else pytest.approx(scores, rel=1e-5))
        assert state == "split" or metrics[state]["test/accuracy"] == scores["test/accuracy"]  # of sevenths
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir()) and "model.safetensors" in names
    for name in {*names} - {"merge_certificate.json", "manifest.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_above_the_tolerance_several_processes_refuse_once_and_write_nothing(
    run: Path, in_process: InProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    line = ["merge", "run=run", *several(2), "dtype=bfloat16", "tolerance=1e-9", "split=null", "output=model"]
    assert in_process(*line) == 2
    message = capfd.readouterr().err
    assert message.count("E-MERGE") == 1 and "nothing was written" in message and "Traceback" not in message
    assert sorted(tmp_path.iterdir()) == before


def test_sharded_weights_write_the_same_texts(tiny_bert: str, in_process: InProcess, tmp_path: Path) -> None:
    (tmp_path / "inputs.txt").write_text("".join(f"a fine film {n}\n" for n in range(7)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, eos_token="[SEP]")
    ends = {f"{kind}_token_id": tokenizer.sep_token_id for kind in ("bos", "eos", "pad")}
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **size, **ends)).save_pretrained("gpt")
    tokenizer.save_pretrained("gpt")
    task = TextGeneration(checkpoint="gpt", adapter=Lora(targets="all-linear"), columns={"text": "text"})
    task.configure_model()
    task.save("adapter")
    line = ["predict", "run=adapter", "input=inputs.txt", "batch_size=3", "options.max_new_tokens=12"]
    line += ["options.temperature=1.0", "options.stop=[e]"]  # so that texts have other lengths
    assert in_process(*line, "device=cpu", "output=one.jsonl") == 0
    assert in_process(*line, *FSDP, "output=two.jsonl") == 0
    one, two = (read(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    assert two == one and len({len(answer["completion"]) for answer in one}) > 2


def test_an_input_that_one_process_refuses_is_told_once(run: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "inputs.jsonl").write_text('{"text": "fine"}\n{"review": "dull"}\n')
    message = refused("predict", "run=run", "input=inputs.jsonl", *several(2), "output=out.jsonl")
    assert "E-INPUT" in message and "'text'" in message and "Traceback" not in message


@pytest.mark.slow  # its processes import everything
def test_a_failing_process_ends_all_with_its_traceback(
    run: Path, loralight: Callable[..., Any], rewrite: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "made_failing/conf/task").mkdir(parents=True)
    (tmp_path / "made_failing/__init__.py").write_text(FAILING)
    (tmp_path / "made_failing/conf/task/failing.yaml").write_text("task: {_target_: made_failing.Failing}\n")

    def rename(adapter: Path) -> None:
        made = json.loads((adapter / "loralight.json").read_text())
        made["task"]["name"] = "failing"
        (adapter / "loralight.json").write_text(json.dumps(made))

    rewrite(run / "adapter", rename)
    line = ["predict", "--plugin-dir", "made_failing", "run=run", "input=seven.csv", *several(2)]
    done = loralight(*line, "output=out.jsonl")
    assert done.returncode == 1
    assert "process 1 failed:" in done.stderr and done.stderr.rstrip().endswith("ValueError: met its fate")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["merge", "output=model", "device=cuda"], "E-DEVICES: device=cuda is of one process"),
        (["merge", "output=model", *FSDP], "E-FSDP: merge writes whole weights"),
        (["predict", "run=[run]", "input=one.csv", *FSDP], "E-FSDP: trainer=fsdp predicts with one adapter's weights"),
        (["ranks"], "E-DEVICES: loralight ranks runs in one process, and here are 2"),
        (["predict", "input=one.csv", "stream=true"], "E-DEVICES: stream=true is answered by one process"),
        (["predict", "input=one.csv", "device=cuda"], "E-DEVICES: device=cuda is of one process"),
        (["predict", "input=one.csv", "trainer.devices=0"], "E-DEVICES: trainer.devices is 0"),
        (["evaluate", "data.test=one.csv"], "E-DATA-EMPTY: the test split has 1 rows for 2 processes"),
        (["evaluate", "split=train"], "E-SPLIT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_takes_one_process_refuses_more(line: list[str], message: str, run: Path, refused: Refused) -> None:
    verb, *rest = line
    given = [] if "trainer=fsdp" in rest else several(2)
    assert message in refused(verb, "run=run", *given, *rest)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], (1, "auto")), (["trainer.devices=2"], (2, "auto")), (several(3), (3, "ddp")), (["trainer=cpu"], (1, "auto"))],
    ids=str,
)
def test_a_run_of_two_processes_is_measured_in_one_unless_the_command_says_more(
    given: list[str],
    expected: tuple[int, str],
    run: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "launch_without_folder", lambda _, config: asked.append(config["trainer"]) or {})
    assert in_process("evaluate", "run=run", *given) == 0
    assert [(trainer["devices"], trainer["strategy"]) for trainer in asked] == [expected]


def test_a_run_of_two_processes_is_merged_in_one(run: Path, in_process: InProcess) -> None:
    assert in_process("merge", "run=run", "output=model", "split=null") == 0
