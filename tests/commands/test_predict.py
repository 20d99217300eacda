"""`loralight predict`: a line of JSON for each input, in their order."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loralight
from loralight.data.inputs import read_inputs
from loralight.errors import InputError

InProcess = Callable[..., int]
Refused = Callable[..., str]
TEXTS = ["a fine film", "a dull film", "what a mess, really", "joy", '"quoted", they said', "naïve — ☕"]


@pytest.fixture(scope="module")
def run(tiny_bert: str, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter's folder of a run; its predictions need no training."""
    from loralight.artifacts.export import save_adapter
    from loralight.config.build import build_data, build_task, recipe
    from loralight.config.composition import compose, plain

    settings = ["data=text_classification", f"data.path='{texts}'", f"model.checkpoint='{tiny_bert}'"]
    composed = compose("train", [*settings, "model.max_length=16"])
    config: dict[str, Any] = {part: plain(composed[part]) for part in ("data", "task", "adapter")}
    config["names"] = {"task": "text_classification", "adapter": "lora"}
    data = build_data(config)
    task = build_task(config, data.model_arguments())
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(task, folder, recipe=recipe(config, data.model_arguments(), task), metrics={})
    return folder.parent


def answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write(folder: Path, kind: str) -> str:
    file = folder / f"inputs.{kind}"
    if kind == "txt":
        file.write_text("\n".join([*TEXTS[:3], "", *TEXTS[3:]]) + "\n", encoding="utf-8")  # an empty line is no input
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"text": text, "id": 3}) + "\n" for text in TEXTS), encoding="utf-8")
    else:
        quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
        file.write_text("".join(f"{line}\n" for line in ["text,id", *(f"{text},3" for text in quoted)]), "utf-8")
    return str(file)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_kind_of_file_is_answered_in_its_order(
    kind: str, batch_size: int, run: Path, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"run='{run}'", f"input='{write(tmp_path, kind)}'", f"batch_size={batch_size}", "device=cpu"]
    assert in_process("predict", *line) == 0
    given = answers(capsys.readouterr().out)
    assert [answer["text"] for answer in given] == TEXTS
    alone = loralight.load(run, device="cpu")
    for answer in given:
        (expected,) = alone.predict([answer["text"]])
        assert answer["label"] in ("good", "bad")
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_standard_input_and_an_output_file(
    run: Path,
    in_process: InProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a fine film\n" + json.dumps({"text": "a dull film"}) + "\n"))
    assert in_process("predict", f"run='{run}'", "input=-", "output=out.jsonl") == 0
    assert capsys.readouterr().out == ""
    written = answers((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [answer["text"] for answer in written] == ["a fine film", "a dull film"]
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl"]  # nothing else


def test_what_is_not_ascii_is_written_as_it_is(run: Path, in_process: InProcess, tmp_path: Path) -> None:
    assert in_process("predict", f"run='{run}'", f"input='{write(tmp_path, 'txt')}'", "output=out.jsonl") == 0
    assert "naïve — ☕" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_an_output_that_exists_is_kept(run: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious")
    assert "E-OUTPUT" in refused("predict", f"run='{run}'", f"input='{write(tmp_path, 'txt')}'", "output=out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("gone.txt", None, "E-DATA: "),
        ("gone.csv", None, "E-DATA: "),
        ("empty.txt", b"", "E-DATA-EMPTY"),
        ("blank.txt", b"\n \n", "E-DATA-EMPTY"),
        ("empty.csv", b"text\n", "E-DATA"),
        ("binary.txt", b"\xff\xfe\x00", "E-DATA: "),
        ("broken.jsonl", b"{", "E-DATA: "),
        ("broken.txt", b"fine\n{not json\n", "line 2 begins like a JSON record"),
        ("folder.txt", ..., "E-DATA: "),
    ],
)
def test_inputs_that_cannot_be_read_are_told_before_the_model_is_loaded(
    name: str, content: Any, code: str, run: Path, refused: Refused, tmp_path: Path
) -> None:
    if content is ...:
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    printed = refused("predict", f"run='{run}'", "checkpoint=nowhere", f"input={name}")
    assert code in printed and name in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("line", "code"),
    [(["run=nowhere", "device=cpu"], "E-RUN"), (["device=abacus"], "E-DEVICES"), (["checkpoint=nowhere"], "E-MODEL")],
    ids=" ".join,
)
def test_what_cannot_predict_is_told(line: list[str], code: str, run: Path, refused: Refused, tmp_path: Path) -> None:
    given = [f"run='{run}'", f"input='{write(tmp_path, 'txt')}'", "output=out.jsonl", *line]
    assert code in refused("predict", *{o.partition("=")[0]: o for o in given}.values())
    assert not (tmp_path / "out.jsonl").exists()  # nothing to be in the way of the next try


def test_a_record_without_its_text_is_named(run: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "inputs.jsonl").write_text('{"review": "a fine film"}\n')
    assert "E-INPUT" in (message := refused("predict", f"run='{run}'", "input=inputs.jsonl")) and "'text'" in message


def test_only_the_end_of_a_line_ends_an_input(tmp_path: Path) -> None:
    (tmp_path / "inputs.txt").write_bytes('one\u2028more\x0cstill\r\ntwo\n{"text": "three"}'.encode())
    assert read_inputs(str(tmp_path / "inputs.txt")) == ["one\u2028more\x0cstill", "two", {"text": "three"}]


def test_rows_of_a_table_are_records(tmp_path: Path) -> None:
    assert read_inputs(write(tmp_path, "csv")) == [{"text": text, "id": 3} for text in TEXTS]
    with pytest.raises(InputError, match="E-DATA"):
        read_inputs(str(tmp_path / "gone.csv"))


def test_a_json_array_holds_the_inputs_and_a_remark_in_brackets_is_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('[\n  "one",\n  {"text": "two"}\n]\n'))
    assert read_inputs("-") == ["one", {"text": "two"}]
    for text in ("[sighs] what a film", "[1]", "[]"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert read_inputs("-") == [text]


def test_a_terminal_asks_and_answers_line_by_line_and_goes_on_after_one_that_cannot_be_read(
    run: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, printed = iter(["a fine film", "{no record", "a dull film"]), list[str]()

    def ask(prompt: str) -> str:
        printed.append(capsys.readouterr().out)
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    monkeypatch.setattr("builtins.input", ask)
    assert in_process("predict", f"run={run}", "input=-", "device=cpu") == 0
    texts = [[answer["text"] for answer in answers(part)] for part in printed]
    assert texts == [[], ["a fine film"], [], ["a dull film"]], "each before the next is asked for"
