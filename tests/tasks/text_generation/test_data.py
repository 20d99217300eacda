"""Rows of any form become packed tokens with the targets that are learnt, and what is cut or left out is counted."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, BertConfig, RobertaConfig

from loralight.errors import InputError
from loralight.models.pretrained import check_causal
from loralight.tasks.text_generation import TextGenerationData
from loralight.tasks.text_generation.data import IGNORED, read_text

COLUMNS = {"messages": "messages", "prompt": "prompt", "completion": "completion", "text": "text"}
TEXTS = ["the quick brown fox", "what is it? it is a fine day!", "", "the lazy dog jumps over the fox. " * 9]
PAIRS = [{"prompt": "what is it?", "completion": "the fox"}, {"prompt": "the dog?", "completion": "no, the quick fox"}]
CHAT = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a fine day"}]


def make(
    folder: Path, checkpoint: str, rows: list[dict[str, Any]], *, columns: Any = None, **arguments: Any
) -> TextGenerationData:
    """The data of a JSONL file, which is validation's and test's too unless others are given."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = TextGenerationData(
        checkpoint=checkpoint,
        columns={**COLUMNS, **(columns or {})},
        **{"max_length": 32, "batch_size": 8, **dict.fromkeys(("train", "validation", "test"), str(file)), **arguments},
    )
    data.setup()
    return data


def texts(values: list[str] = TEXTS) -> list[dict[str, Any]]:
    return [{"text": value} for value in values]


def documents(row: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """The documents of a packed row: input_ids and targets."""
    starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
    ends = [*starts[1:], len(row["input_ids"])]
    return [(row["input_ids"][a:b], row["targets"][a:b]) for a, b in zip(starts, ends, strict=True)]


BLOOM = {"n_layer": 2, "n_head": 2, "hidden_size": 32, "initializer_range": 0.3}


@pytest.mark.parametrize(("num_rows", "given", "expected"), [(10, None, 1), (100, None, 3), (300, None, 8), (10, 8, 8)])
def test_few_rows_make_small_batches_so_that_a_run_has_steps(
    num_rows: int, given: int | None, expected: int, language_model: Callable[..., str], tmp_path: Path
) -> None:
    rows = texts([f"{TEXTS[0]} {number}" for number in range(num_rows)])
    data = make(tmp_path, language_model("Llama"), rows, packed=False, batch_size=given)
    assert data.batch_size == max(len(batch["input_ids"]) for batch in data.train_dataloader()) == expected
    assert data.has_small_batches is (given is None and expected < 8)


def test_the_size_of_a_batch_follows_rows_that_are_taken_apart(
    language_model: Callable[..., str], tmp_path: Path
) -> None:
    checkpoint = language_model("Bloom", **BLOOM)
    data = make(tmp_path, checkpoint, texts(TEXTS[:2] * 50), batch_size=None)
    before = data.batch_size
    data.suit_(AutoModelForCausalLM.from_pretrained(checkpoint))
    assert before < data.batch_size == data.usual_batch.size(100)


def test_prompts_and_completions_of_messages_are_chats_whose_completion_is_learnt(
    tiny_llama: str, tmp_path: Path
) -> None:
    more = [{"role": "user", "content": "the dog?"}, {"role": "assistant", "content": "no, the quick fox"}]
    split = {"prompt": [*CHAT, more[0]], "completion": [more[1]]}
    weighed = [{**message, "weight": weight} for message, weight in zip([*CHAT, *more], (0, 0, 0, 1), strict=True)]
    found = make(tmp_path, tiny_llama, [split] * 2, max_length=96)
    wanted = make(tmp_path, tiny_llama, [{"messages": weighed}] * 2, max_length=96)
    assert [dict(row) for row in found.splits["train"]] == [dict(row) for row in wanted.splits["train"]]
    assert 0 < found.counts["train"]["learnt"] < found.counts["train"]["tokens"] / 3
    asked, answer = found.form.example(found.rows["train"][0])
    assert asked["messages"][-1]["content"] == "the dog?" and answer == "no, the quick fox"


@pytest.mark.parametrize(
    ("family", "changes", "packed", "shared"),
    [
        ("Llama", {}, None, True),
        ("Bloom", BLOOM, None, False),
        ("Bloom", BLOOM, True, True),
        ("Llama", {}, False, False),
    ],
)
def test_documents_share_a_row_by_default_if_the_model_keeps_them_apart(
    family: str,
    changes: dict[str, Any],
    packed: bool | None,
    shared: bool,
    language_model: Callable[..., str],
    tmp_path: Path,
) -> None:
    checkpoint = language_model(family, **changes)
    data = make(tmp_path, checkpoint, texts(TEXTS[:2] * 2), packed=packed)
    before = sum(data.lengths("train"))
    data.suit_(AutoModelForCausalLM.from_pretrained(checkpoint))
    assert (len(data.splits["train"]) < 4) is shared
    assert sum(data.lengths("train")) == before == sum(len(row["input_ids"]) for row in data.splits["train"])
    is_told = any("lets documents that share a row see one another" in line for line in data.report())
    assert is_told is (packed is None and not shared)


def test_every_token_of_a_text_is_learnt_once_however_it_is_cut(tmp_path: Path, tiny_llama: str) -> None:
    data = make(tmp_path, tiny_llama, texts(), max_length=16)
    found: Counter[tuple[int, int]] = Counter()
    for row in data.splits["train"]:
        assert len(row["input_ids"]) <= 16
        for ids, targets in documents(row):
            assert targets == [*ids[1:], IGNORED], "a target is the token that follows in the same document"
            found.update(zip(ids[:-1], targets[:-1], strict=True))
    expected: Counter[tuple[int, int]] = Counter()
    for text in filter(None, TEXTS):
        ids = [*data.tokenizer(text)["input_ids"], data.tokenizer.eos_token_id]
        expected.update(pairwise(ids))
    assert found == expected


@pytest.mark.parametrize("form", ["prompt", "chat"])
def test_of_prompts_and_chats_only_the_answers_are_learnt(tmp_path: Path, tiny_llama: str, form: str) -> None:
    rows = PAIRS if form == "prompt" else [{"messages": CHAT}] * 2
    data = make(tmp_path, tiny_llama, rows, max_length=64)
    learnt = [
        data.tokenizer.decode([target for target in targets if target != IGNORED])
        for row in data.splits["train"]
        for _, targets in documents(row)
    ]
    answers = (
        [f"{pair['completion']}<|endoftext|>" for pair in PAIRS] if form == "prompt" else ["a fine day<|im_end|>"] * 2
    )
    assert sorted(learnt) == sorted(answers)


def test_a_chat_whose_template_drops_earlier_reasoning_is_a_document_for_each_answer(
    tmp_path: Path, tiny_llama: str
) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}{{ m.content if loop.last else m.content.split('>')[-1] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    said = [CHAT[0], {**CHAT[1], "content": "<fine?>a fine day"}]
    rows = [{"messages": [*said, *said]}, {"messages": [*said, CHAT[0], {**CHAT[1], "content": "it is " * 30}]}]
    data = make(tmp_path, tiny_llama, rows, max_length=48, chat_template=template)
    learnt = [
        data.tokenizer.decode([target for target in document["targets"] if target != IGNORED])
        for document in data.documents["train"]
    ]
    assert learnt[:3] == ["<fine?>a fine day<|im_end|>"] * 3 and learnt[3].startswith("it is it")
    train, *_ = data.report()
    assert train.startswith("train: 2 chats") and "1 cut at 48 tokens; 4 texts, as the chat template drops" in train


def test_a_batch_is_padded_on_the_right_and_its_positions_go_on(tmp_path: Path, tiny_llama: str) -> None:
    data = make(tmp_path, tiny_llama, texts([*TEXTS[:2], "a", "it is"]), max_length=20)
    batch = next(iter(data.val_dataloader()))
    rows = sorted(data.splits["validation"], key=lambda row: len(row["input_ids"]))
    assert {tensor.shape for tensor in batch.values()} == {(len(rows), len(rows[-1]["input_ids"]))}
    for at, row in enumerate(rows):
        real = len(row["input_ids"])
        for name, values in row.items():
            assert batch[name][at, :real].tolist() == values
        assert (batch["targets"][at, real:] == IGNORED).all()
        steps = batch["position_ids"][at, real - 1 :].diff()
        assert (steps == 1).all()


def test_rows_of_one_document_say_nothing_of_positions(tmp_path: Path, tiny_llama: str) -> None:
    data = make(tmp_path, tiny_llama, texts(), packed=False)
    assert all(row["position_ids"] == list(range(len(row["input_ids"]))) for row in data.splits["train"])
    assert next(iter(data.val_dataloader())).keys() == {"input_ids", "targets"}


def test_lengths_are_those_of_the_rows(tmp_path: Path, tiny_llama: str) -> None:
    data = make(tmp_path, tiny_llama, texts())
    assert data.lengths("train") == [len(row["input_ids"]) for row in data.splits["train"]]


@pytest.mark.parametrize(
    ("rows", "columns", "kind"),
    [
        ([{"text": "a", "prompt": "b", "completion": "c", "messages": CHAT}] * 2, {}, "chats"),
        ([{"text": "a", "prompt": "b", "completion": "c"}] * 2, {}, "prompts with completions"),
        ([{"text": "a b", "prompt": "b"}] * 2, {}, "texts"),
        ([{"ask": "a", "answer": "b"}] * 2, {"prompt": "ask", "completion": "answer"}, "prompts with completions"),
        ([{"dialogue": "User: a\nAssistant: b"}] * 2, {"messages": "dialogue"}, "chats"),
    ],
)
def test_the_columns_say_what_the_rows_are(
    tmp_path: Path, tiny_llama: str, rows: list[dict[str, Any]], columns: dict[str, str], kind: str
) -> None:
    data = make(tmp_path, tiny_llama, rows, columns=columns, max_length=64)
    assert data.report()[0].startswith(f"train: 2 {kind}, ")
    assert set(data.model_arguments()["columns"].values()) <= set(rows[0])


def test_a_file_without_a_header_line_has_all_its_rows(tmp_path: Path, tiny_llama: str) -> None:
    (tmp_path / "rows.csv").write_text("what is it?,the fox\nthe dog?,no\n")
    file = str(tmp_path / "rows.csv")
    arguments = {"checkpoint": tiny_llama, "max_length": 32, **dict.fromkeys(("train", "validation"), file)}
    data = TextGenerationData(columns={"prompt": 0, "completion": 1}, header=False, **arguments)
    data.setup()
    assert len(data.rows["train"]) == 2 and data.model_arguments()["columns"] == {"prompt": "0", "completion": "1"}
    (tmp_path / "rows.csv").write_text("what is it to the quick fox?,1\nthe dog?,2\n")
    with pytest.raises(InputError, match=r"^E-COLUMN: .*If its first line, .* is a row .*data\.header=false"):
        TextGenerationData(columns=COLUMNS, **arguments).setup()


def test_what_is_cut_or_left_out_is_counted(tmp_path: Path, tiny_llama: str) -> None:
    long = "the quick brown fox " * 9
    rows = [*PAIRS, {"prompt": "what?", "completion": long}, {"prompt": long, "completion": "no"}]
    data = make(tmp_path, tiny_llama, rows)
    line = data.report()[0]
    assert "1 cut at 32 tokens" in line and "1 left out: nothing to learn within 32 tokens" in line
    cut = next(row for row in data.documents["train"] if len(row["input_ids"]) == 32)
    assert data.tokenizer.eos_token_id not in cut["targets"], "a completion that lost its end does not end there"
    assert any(line.startswith("caution: 1 of 4 rows of train") and "longer than 32" in line for line in data.report())
    assert any(line.startswith("caution: 1 of 4 rows of train") and "left out" in line for line in data.report())
    assert any("rows of validation are in train too" in line for line in data.report())
    texts_only = make(tmp_path, tiny_llama, texts())
    assert "cut" not in texts_only.report()[0], "a text goes on in the next row"
    assert "1 left out" in texts_only.report()[0]


def test_a_text_file_becomes_texts_of_whole_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"{number}: " + "word " * 90 + "end." for number in range(30)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    parts = read_text(str(tmp_path / "book.txt"))["text"]
    assert len(parts) > 2 and all(len(part) <= 4000 for part in parts)
    assert [line for part in parts for line in part.split("\n") if line] == paragraphs
    shutil.copy(tmp_path / "book.txt", tmp_path / "book.md")
    assert TextGenerationData.readers[".md"](str(tmp_path / "book.md"))["text"] == parts
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"^E-DATA: .*bad\.txt: cannot be read as text"):
        read_text(str(tmp_path / "bad.txt"))


@pytest.mark.parametrize(("unit", "ends"), [("a line\n", "\n"), ("word ", " "), ("\u6f22", "\u6f22")])
def test_a_long_paragraph_is_divided_after_lines_or_words(tmp_path: Path, unit: str, ends: str) -> None:
    (tmp_path / "one.txt").write_text(unit * 5000, encoding="utf-8")
    parts = read_text(str(tmp_path / "one.txt"))["text"][:]
    assert "".join(parts) == unit * 5000
    assert all(len(part) <= 4000 and part.endswith(ends) for part in parts) and len(parts) <= 10


def test_a_text_file_without_text_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n\n")
    assert read_text(str(tmp_path / "blank.txt"))["text"][:] == []


def test_a_folder_of_text_files_is_data(tmp_path: Path, tiny_llama: str) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("it is a fine day\n\nthe fox\n" * 3)
    data = TextGenerationData(checkpoint=tiny_llama, columns=COLUMNS, path=str(tmp_path), max_length=64)
    data.setup()
    assert data.splits.keys() == {"train", "validation"}


def test_the_baseline_knows_how_often_each_token_comes(tmp_path: Path, tiny_llama: str) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    train.write_text("\n".join(json.dumps(row) for row in texts(["aaab", "aab"])))
    held_out.write_text(json.dumps({"text": "aba"}))
    data = make(tmp_path, tiny_llama, texts(), train=str(train), validation=str(held_out), test=None)
    # learnt from: a a b end, a b end; the token for "a" comes 3 times, the others twice, none once
    new = 0.5 / 8
    a, b, end = (1 - new) * 3 / 7, (1 - new) * 2 / 7, (1 - new) * 2 / 7
    loss = -(math.log(b) + math.log(a) + math.log(end)) / 3
    found = data.baseline("validation")
    assert found["loss"] == pytest.approx(loss)
    assert found["perplexity"] == pytest.approx(math.exp(loss))
    assert found["token_accuracy"] == pytest.approx(1 / 3)


def test_prompts_that_are_equal_have_all_their_references(tmp_path: Path, tiny_llama: str) -> None:
    rows = [{"prompt": p, "completion": c} for p, c in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5"))]
    data = make(tmp_path, tiny_llama, rows)
    assert data.prompts("test", 2) == [({"prompt": "a"}, ["1", "3"]), ({"prompt": "b"}, ["2", "5"])]
    assert len(data.prompts("test", 9)) == 3


FAULTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "no form": (
        [{"txt": "a"}] * 2,
        {},
        r"E-COLUMN: the train split has columns 'txt'; needed are messages \('messages'\); or prompt \('prompt'\) and "
        r"completion \('completion'\); or text \('text'\)\. Say which with data\.columns\.<role>=<name>, such as "
        r"data\.columns\.text=txt\.$",
    ),
    "two texts of other names": (
        [{"question": "a", "number": 1, "answer": "b"}] * 2,
        {},
        r"E-COLUMN: .*, such as data\.columns\.prompt=question data\.columns\.completion=answer\.$",
    ),
    "messages under ShareGPT's name": (
        [{"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 2,
        {},
        r"E-COLUMN: .*, such as data\.columns\.messages=conversations\.$",
    ),
    "instructions under Dolly's names": (
        [{"instruction": "a", "context": "", "response": "b", "category": "c"}] * 2,
        {"columns": {"instruction": "instruction", "output": "output", "input": "input"}},
        r"E-COLUMN: .*, such as data\.columns\.output=response data\.columns\.input=context\.$",
    ),
    "a text is missing": (
        [{"text": "a"}, {"text": None}],
        {},
        r"E-TEXT: .+: train row 1, column 'text': None is not a text; data\.drop_missing='\[text\]' leaves out",
    ),
    "a chat without answers": (
        [{"messages": CHAT}, {"messages": CHAT[:1]}],
        {},
        "E-CHAT: .+: train row 1: no turn of the assistant, only of: user",
    ),
    "prompts that leave no room": (
        [{"prompt": "the quick fox " * 20, "completion": "no"}] * 2,
        {},
        "E-SEQ-LEN: train: none of 2 rows has anything to learn: .* the first 32 tokens; then raise model.max_length",
    ),
    "more tokens than the model takes": (texts(), {"max_length": 129}, "E-SEQ-LEN: model.max_length=129: .*128"),
    "rows of one token": (texts(), {"max_length": 1}, "E-SEQ-LEN: model.max_length=1: give at least 2"),
    "no such template": ([{"messages": CHAT}], {"chat_template": "no.jinja"}, r"E-CHAT: data\.chat_template=no\.jinja"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_learnt_from_is_one_clear_error(tmp_path: Path, tiny_llama: str, fault: str) -> None:
    rows, arguments, message = FAULTS[fault]
    with pytest.raises(InputError, match=f"^{message}"):
        make(tmp_path, tiny_llama, rows, **arguments)


def test_a_column_that_only_train_has_is_an_error(tmp_path: Path, tiny_llama: str) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"txt": "a"}))
    with pytest.raises(InputError, match=r"^E-COLUMN: the validation split has no column 'text', which train has"):
        make(tmp_path, tiny_llama, texts(), validation=str(other))


@pytest.mark.parametrize(
    ("name", "columns", "kind"),
    [
        ("tiny_shakespeare", {}, "texts"),
        ("sgd_dialogue", {"messages": "text"}, "chats"),
        ("e2e_nlg", {"prompt": "meaning_representation", "completion": "reference"}, "prompts with completions"),
    ],
)
def test_real_data_is_packed_with_hardly_any_padding(
    tmp_path: Path, shared_data: Path, tiny_llama: str, name: str, columns: dict[str, str], kind: str
) -> None:
    rows_of_it = Dataset.from_parquet(str(shared_data / name / "train.parquet")).select(range(40)).to_list()
    data = make(tmp_path, tiny_llama, rows_of_it, columns=columns, max_length=128)
    assert data.report()[0].startswith(f"train: 40 {kind}")
    rows = data.splits["train"]
    if kind != "texts":  # such a document is not cut
        assert data.counts["train"]["tokens"] / (len(rows) * 128) > 0.8
    batch = data.collate([rows[at] for at in range(4)])
    assert (batch["targets"] != IGNORED).any() and batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
def test_an_encoder_is_refused_as_its_tokens_see_what_they_should_predict(config: Any, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        InputError, match=rf"^E-MODEL: model.checkpoint=.*encoder: {config.model_type} is an encoder, whose"
    ):
        make(tmp_path, str(tmp_path / "encoder"), texts())


def test_an_encoder_made_a_decoder_is_not_refused(tmp_path: Path) -> None:
    BertConfig(is_decoder=True).save_pretrained(tmp_path / "decoder")
    check_causal(str(tmp_path / "decoder"))


def test_documents_in_other_rows_are_the_same_documents_and_cut_ones_are_not(tmp_path: Path, tiny_llama: str) -> None:
    here, alone = (make(tmp_path, tiny_llama, texts(TEXTS[:2]), packed=packed).identity() for packed in (True, False))
    assert alone["digests"] != here["digests"]
    assert alone["asked"] == here["asked"]
    assert make(tmp_path, tiny_llama, texts(TEXTS[:2]), max_length=48).identity()["asked"] == here["asked"]
    assert make(tmp_path, tiny_llama, texts(TEXTS[:2]), max_length=4).identity()["asked"] != here["asked"]
