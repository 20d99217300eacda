"""Texts and labels become batches, whatever the columns are called; what cannot is one error that names the row."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoTokenizer

from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassificationData

FEATURES = {"text": Value("string"), "label": Value("string")}
SHORT = ["good", "so bad", "rather good film", "bad"]
LONG = ["word " * 30, "word " * 13 + "end", "word " * 14, "word " * 15]  # 32, 16, 16 and 17 tokens


def rows(texts: list[str] = SHORT, **columns: list[Any]) -> dict[str, list[Any]]:
    return {"text": texts, **(columns or {"label": ["good", "bad", "good", "bad"]})}


def make(
    folder: Path,
    checkpoint: str,
    *,
    columns: dict[str, Any] | None = None,
    splits: dict[str, Any] | None = None,
    **arguments: Any,
) -> TextClassificationData:
    """The data of JSONL files with these splits; train's rows are those of validation too if it has none."""
    splits = splits or {"train": rows()}
    files = {}
    for split, content in {"validation": splits["train"], **splits}.items():
        lines = [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("\n".join(json.dumps(line) for line in lines))
    data = TextClassificationData(
        checkpoint=checkpoint,
        columns={"text": "text", "label": "label", **(columns or {})},
        **{"max_length": 16, "batch_size": 4, **arguments},
        **{split: str(file) for split, file in files.items()},
    )
    data.setup()
    return data


def first_batch(data: TextClassificationData) -> dict[str, torch.Tensor]:
    return next(iter(data.val_dataloader()))


def test_rows_read_otherwise_are_the_same_rows_and_relabelled_ones_are_not(tmp_path: Path, tiny_bert: str) -> None:
    labels = {"label": ["good", "bad", "good", "bad"], "again": ["good", "good", "bad", "bad"]}
    splits = {"train": {**rows(LONG, **labels), "title": SHORT}}
    here = make(tmp_path, tiny_bert, splits=splits).identity()
    assert here["asked"].keys() == {"train", "validation"}
    for changed in ({"max_length": 8}, {"columns": {"text": "title"}}, {"columns": {"pair": "title"}}):
        other = make(tmp_path, tiny_bert, splits=splits, **changed).identity()
        assert other["digests"] != here["digests"]
        assert other["asked"] == here["asked"]
    relabelled = make(tmp_path, tiny_bert, splits=splits, columns={"label": "again"}).identity()
    assert relabelled["asked"]["validation"] != here["asked"]["validation"]


def test_a_column_that_is_not_read_may_be_broken(tmp_path: Path, tiny_bert: str) -> None:
    pictures = [{"bytes": b"no picture", "path": None}] * 4
    table = Dataset.from_dict({**rows(), "picture": pictures}, Features({**FEATURES, "picture": Image()}))
    table.to_parquet(tmp_path / "train.parquet")
    data = TextClassificationData(
        checkpoint=tiny_bert,
        columns={"text": "text", "label": "label"},
        max_length=16,
        path=str(tmp_path / "train.parquet"),
        validation_fraction=0.5,
    )
    data.setup()
    assert data.identity()["asked"].keys() == {"train", "validation"}


def test_a_batch_is_what_the_tokenizer_makes_of_its_rows(tmp_path: Path, tiny_bert: str) -> None:
    batch = first_batch(make(tmp_path, tiny_bert, length_grouped=False))
    expected = AutoTokenizer.from_pretrained(tiny_bert)(SHORT, padding=True, return_tensors="pt")
    assert batch.keys() == expected.keys() | {"labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    assert batch["labels"].tolist() == [1, 0, 1, 0]  # names in training are sorted: bad, good


def test_a_few_rows_of_train_do_not_hide_the_labels_of_the_rest(tmp_path: Path, tiny_bert: str) -> None:
    splits = {"train": rows(label=["good", "bad", "odd", "odd"])}
    for seed in range(4):
        data = make(tmp_path, tiny_bert, splits=splits, limit_rows=1, seed=seed)
        assert data.names == ["bad", "good", "odd"]


def folders(folder: Path, texts: dict[str, str | bytes]) -> Path:
    """A folder with a file for each text, by its path inside."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def of_folder(folder: Path, checkpoint: str, **loading: Any) -> TextClassificationData:
    data = TextClassificationData(
        checkpoint=checkpoint,
        columns={"text": "text", "label": "label"},
        path=str(folder),
        max_length=16,
        **loading,
    )
    data.setup()
    return data


def test_a_folder_of_texts_for_each_label_is_read(tmp_path: Path, tiny_bert: str) -> None:
    texts = {
        "train/neg/0_3.txt": "so bad",
        "train/neg/1_1.txt": "bad\nand long",
        "train/pos/deeper/0_9.txt": "good",
        "train/pos/.hidden.txt": "not read",
        "train/pos/notes.md": "not read",
        "train/urls.txt": "not read",
        "test/neg/0_2.txt": "bad film",
        "test/pos/0_7": "caf\u00e9".encode("latin-1"),  # many such files have no ending
        "README": "not read",
    }
    data = of_folder(folders(tmp_path, texts), tiny_bert, validation_fraction=0.34, encoding="latin-1")
    read = {split: list(zip(rows["text"], data.label_lists[split], strict=True)) for split, rows in data.texts.items()}
    assert data.names == ["neg", "pos"]
    assert sorted(read["train"] + read["validation"]) == [("bad\nand long", [0]), ("good", [1]), ("so bad", [0])]
    assert read["test"] == [("bad film", [0]), ("caf\u00e9", [1])]


def test_folders_of_labels_that_are_no_splits_are_training(tmp_path: Path, tiny_bert: str) -> None:
    texts = {f"{label}/{number}.txt": f"{label} film" for label in ("bad", "good") for number in range(4)}
    data = of_folder(folders(tmp_path, texts), tiny_bert, split_seed=2)
    assert {split: len(rows) for split, rows in data.texts.items()} == {"train": 7, "validation": 1}


def test_folders_beside_a_table_are_not_read(tmp_path: Path, tiny_bert: str) -> None:
    texts = {
        "rows.csv": "text,label\n" + "".join(f"film {row},{row % 2}\n" for row in range(10)),
        "labels.json": '["bad", "good"]',
        "runs/a/log.txt": "text",
        "old/b.txt": "text",
    }
    folder = folders(tmp_path, texts)
    assert of_folder(folder, tiny_bert).names == ["bad", "good"]
    (folder / "more_dev.csv").write_text("text,label\nfilm,1\n")
    told = re.escape(f"If the folders in {folder} are the labels: data.train={folder}")
    with pytest.raises(InputError, match=f"no training split, only more_dev, rows.* {told}"):
        of_folder(folder, tiny_bert)
    (folder / "rows.csv").unlink()
    (folder / "more_dev.csv").write_text("file\na.txt\nb.txt\n")
    with pytest.raises(InputError, match=f"the train split has no column 'text'; it has 'file'.* {told}"):
        of_folder(folder, tiny_bert)


def test_a_folder_without_texts_and_one_in_another_encoding_are_named(tmp_path: Path, tiny_bert: str) -> None:
    with pytest.raises(InputError, match=r"^E-DATA: \S*none: holds no folders with text files \(\.txt\)"):
        of_folder(folders(tmp_path / "none", {"a/b.md": "text"}), tiny_bert)
    with pytest.raises(InputError, match=r"^E-DATA: \S*latin/a/b\.txt: cannot be read .* data\.encoding=latin-1"):
        of_folder(folders(tmp_path / "latin", {"a/b.txt": "caf\u00e9".encode("latin-1")}), tiny_bert)


@pytest.mark.parametrize(("num_rows", "expected"), [(100, 16), (3000, 22), (5000, 32)])
def test_few_texts_make_small_batches_so_that_a_head_has_steps(
    tmp_path: Path, tiny_bert: str, num_rows: int, expected: int
) -> None:
    content = {"text": ["good"] * num_rows, "label": ["good", "bad"] * (num_rows // 2)}
    data = make(tmp_path, tiny_bert, splits={"train": content, "validation": rows()}, batch_size=None)
    assert data.batch_size == expected == len(next(iter(data.train_dataloader()))["labels"])
    assert data.has_small_batches is (expected < 32) and data.eval_batch_size == 32


def test_columns_may_have_any_names_and_others_are_left_out(tmp_path: Path, tiny_bert: str) -> None:
    content = {"labels": [1, 2, 3, 4], "Überschrift": SHORT, "input_ids": SHORT, "stars": [10, 9, 10, 9]}
    columns = {"text": "Überschrift", "label": "stars"}
    data = make(tmp_path, tiny_bert, columns=columns, splits={"train": content}, length_grouped=False)
    plain = first_batch(make(tmp_path, tiny_bert, length_grouped=False))
    batch = first_batch(data)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert data.names == ["9", "10"]
    assert data.model_arguments()["text_columns"] == ["Überschrift"]


def test_a_pair_is_encoded_as_the_tokenizer_encodes_pairs(tmp_path: Path, tiny_bert: str) -> None:
    questions = ["is it?", "was it so?", "will it be?", "who?"]
    content = rows(question=questions, label=[0, 1, 0, 1])
    data = make(tmp_path, tiny_bert, columns={"pair": "question"}, splits={"train": content}, length_grouped=False)
    expected = AutoTokenizer.from_pretrained(tiny_bert)(SHORT, questions, padding=True, return_tensors="pt")
    batch = first_batch(data)
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert batch["token_type_ids"].any()


@pytest.mark.parametrize(
    ("content", "label", "names"),
    [
        (rows(label=[["b", "a"], [], ["a"], ["c", "b"]]), "label", ["a", "b", "c"]),
        (rows(a=[1, 0, 1, 0], b=[1, 0, 0, 1], c=[0, 0, 0, 1]), ["a", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_several_labels_a_row_become_zeros_and_ones(
    tmp_path: Path, tiny_bert: str, content: dict[str, list[Any]], label: Any, names: list[str]
) -> None:
    data = make(tmp_path, tiny_bert, columns={"label": label}, splits={"train": content}, length_grouped=False)
    labels = first_batch(data)["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    arguments = data.model_arguments()
    assert (arguments["labels"], arguments["label_counts"], arguments["multi_label"]) == (names, [2, 2, 1], True)
    assert arguments["num_rows"] == 4


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a, b", "", "a", "c,b"], ","),
        (["[a, b]", "[]", "[a]", "[b, c]"], ","),
        (["['a', 'b']", "[]", "['a']", "['b', 'c']"], None),
    ],
    ids=str,
)
def test_labels_in_one_text_are_several_where_a_separator_is_given_or_lists_are_written(
    tmp_path: Path, tiny_bert: str, cells: list[str], separator: str | None
) -> None:
    (tmp_path / "rows.csv").write_text("".join(f'{text},"{cell}"\n' for text, cell in zip(SHORT, cells, strict=True)))
    data = TextClassificationData(
        checkpoint=tiny_bert,
        columns={"text": 0, "label": 1},
        header=False,
        label_separator=separator,
        max_length=16,
        length_grouped=False,
        **dict.fromkeys(("train", "validation"), str(tmp_path / "rows.csv")),
    )
    data.setup()
    assert data.names == ["a", "b", "c"] and data.multi_label
    assert first_batch(data)["labels"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_integers_and_words_in_one_column_are_names(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, splits={"train": rows(label=[1, "x", 2, "x"])})
    assert data.names == ["1", "2", "x"]


def test_labels_given_by_name_are_in_the_order_given(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, labels=["good", "neutral", "bad"], length_grouped=False)
    assert first_batch(data)["labels"].tolist() == [0, 2, 0, 2]
    assert data.model_arguments()["label_counts"] == [2, 0, 2]


def test_names_may_be_numbers_and_minus_one_among_them(tmp_path: Path, tiny_bert: str) -> None:
    content = rows(label=[0, 1, -1, 1])
    data = make(tmp_path, tiny_bert, splits={"train": content}, labels=[-1, 0, 1.0], length_grouped=False)
    assert data.names == ["-1", "0", "1"]
    assert first_batch(data)["labels"].tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (rows(label=[-1, -1, -1, -1]), "labels are hidden"),
        (rows(label=[None, None, None, None]), "labels are hidden"),
        ({"text": SHORT, "number": [1, 2, 3, 4]}, "it has no labels (no column 'label')"),
    ],
    ids=["minus one", "missing", "no column"],
)
def test_a_test_split_without_labels_is_left_out_and_said_so(
    tmp_path: Path, tiny_bert: str, test: dict[str, list[Any]], said: str
) -> None:
    data = make(tmp_path, tiny_bert, splits={"train": rows(label=[1, 0, 1, 0]), "test": test})
    assert set(data.splits) == {"train", "validation"}
    assert any(said in line for line in data.report())


def test_a_label_whose_name_is_like_that_of_a_text_is_not_taken_for_misspelled(tmp_path: Path, tiny_bert: str) -> None:
    """As in competitions, whose test split has no column ``target``; one called ``targets`` would be misspelled."""
    train = {"text": SHORT, "target": [1, 0, 1, 0]}
    columns = {"label": "target"}
    data = make(tmp_path, tiny_bert, columns=columns, splits={"train": train, "test": {"text": SHORT}})
    assert set(data.splits) == {"train", "validation"}
    assert any("test: left out, it has no labels (no column 'target')" in line for line in data.report())
    with pytest.raises(InputError, match=r"^E-COLUMN: the test split has no column 'target'.*mean 'targets'"):
        make(tmp_path, tiny_bert, columns=columns, splits={"train": train, "test": {"text": SHORT, "targets": [1] * 4}})


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("max_length", [8, 16, 17, 32])
def test_texts_that_are_cut_are_counted_exactly(tmp_path: Path, tiny_bert: str, max_length: int, pair: bool) -> None:
    content = rows(LONG, **({"pair": SHORT} if pair else {}), label=[0, 1, 0, 1])
    columns = {"pair": "pair"} if pair else {}
    data = make(tmp_path, tiny_bert, columns=columns, splits={"train": content}, max_length=max_length)
    whole = AutoTokenizer.from_pretrained(tiny_bert)(LONG, *([SHORT] if pair else []))["input_ids"]
    expected = sum(len(ids) > max_length for ids in whole)
    assert data.num_truncated == {"train": expected, "validation": expected}
    assert any(f"{expected} ({expected / 4:.1%}) cut at {max_length} tokens" in line for line in data.report()) == (
        expected > 0
    )
    assert list(data.lengths("train")) == [min(len(ids), max_length) for ids in whole]


def cautions(data: TextClassificationData) -> list[str]:
    return [line.removeprefix("caution: ") for line in data.report() if line.startswith("caution: ")]


def test_the_report_warns_of_what_may_explain_a_poor_run(tmp_path: Path, tiny_bert: str) -> None:
    train = rows([f"row {n}" for n in range(40)] + LONG, label=[1] * 42 + [2, 3])
    test = rows([" row 1 ", "row 50"], label=[1, 2])
    data = make(tmp_path, tiny_bert, splits={"train": train, "validation": rows(["row 51"], label=[1]), "test": test})
    few, uneven, odd, repeated = cautions(data)
    assert few.startswith("2 of 3 labels have fewer than 5 training rows: 2 1, 3 1")
    assert uneven.startswith("95.5% of 44 training rows are 1, and 1 are 2: always to answer the first has an accuracy")
    assert odd.startswith("all 3 labels are numbers ('1', '2', '3')")
    assert repeated.startswith("1 of 2 rows of test are in train too"), "spaces around a text do not tell it apart"
    named = make(tmp_path, tiny_bert, labels=["1", "2", "3"], max_length=8, splits={"train": train, "validation": test})
    assert not any("are numbers" in line for line in cautions(named)), "they are what the user calls them"
    shorter = make(tmp_path, tiny_bert, max_length=5, splits={"train": rows(LONG + SHORT, label=[0, 1] * 4)})
    assert any("8 rows of validation are longer than 5 tokens" in line for line in cautions(shorter))


def test_several_labels_a_row_are_not_weighed_as_one(tmp_path: Path, tiny_bert: str) -> None:
    train = rows([f"row {n}" for n in range(200)], label=[["a", "b"] if n < 6 else ["a"] for n in range(200)])
    data = make(tmp_path, tiny_bert, splits={"train": train, "validation": rows(["other"], label=[["a"]])})
    assert cautions(data) == []


def test_the_trivial_answer_is_scored_as_by_scikit_learn(tmp_path: Path, tiny_bert: str) -> None:
    train, test = rows(label=["b", "a", "c", "b"]), rows(label=["a", "b", "a", "a"])
    data = make(tmp_path, tiny_bert, splits={"train": train, "test": test})
    answers = DummyClassifier(strategy="most_frequent").fit(train["text"], train["label"]).predict(test["text"])
    assert data.baseline("test") == pytest.approx(
        {
            "accuracy": accuracy_score(test["label"], answers),
            "f1": f1_score(test["label"], answers, average="macro"),
            "mcc": 0,
            "ece": 0.25,  # its share of train is a half, that of test a quarter
        }
    )


def test_of_several_labels_the_trivial_answer_is_the_commonest_set_or_all(tmp_path: Path, tiny_bert: str) -> None:
    train, test = rows(label=[["a"], ["a"], ["a", "b"], []]), rows(label=[["b"], ["a"], ["a", "b"], ["a"]])
    data = make(tmp_path, tiny_bert, splits={"train": train, "test": test})
    expected = {
        "accuracy": 0.5,  # that of "a" alone
        "f1": (6 / 7 + 2 / 3) / 2,  # that of both labels for each row
        "mcc": (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4),  # that of "a" alone
        "average_precision": (3 / 4 + 2 / 4) / 2,
    }
    assert data.baseline("test") == pytest.approx(expected, abs=1e-6)
    assert data.monitored() == "average_precision"


def test_examples_are_of_rows_that_training_does_not_see_with_their_labels_by_name(
    tmp_path: Path, tiny_bert: str
) -> None:
    splits = {"train": rows(), "test": rows(["x", "y"], label=["bad", "good"])}
    data = make(tmp_path, tiny_bert, splits=splits)
    assert data.examples(5) == [({"text": "x"}, "bad"), ({"text": "y"}, "good")]
    assert len(data.examples(1)) == 1


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such column": (
        {"columns": {"text": "txt"}},
        r"E-COLUMN: the train split has no column 'txt'; it has 'text', 'label'\. Did you mean 'text'\?",
    ),
    "a column that only train has": (
        {"splits": {"train": rows(), "validation": {"text": SHORT}}},
        "E-COLUMN: the validation split has no column 'label'",
    ),
    "numbers for texts": (
        {"columns": {"text": "n"}, "splits": {"train": rows(n=[1, 2, 3, 4], label=[0, 1, 0, 1])}},
        "E-TEXT: .+: train row 0, column 'n': 1 is not a text",
    ),
    "a text is missing": (
        {"splits": {"train": rows(), "validation": rows(["a", "b", None, "c"])}},  # type: ignore[list-item]
        "E-TEXT: .+: validation row 2, column 'text': None is not a text",
    ),
    "a pair is missing": (
        {"columns": {"pair": "b"}, "splits": {"train": rows(b=["x", None, "y", "z"], label=[0, 1, 0, 1])}},
        "E-TEXT: .+: train row 1, column 'b': None is not a text",
    ),
    "a label column of another spelling in test": (
        {"splits": {"train": rows(), "test": {"text": SHORT, "Label": SHORT}}},
        "E-COLUMN: the test split has no column 'label'; .*Did you mean 'Label'",
    ),
    "several labels in one text": (
        {"splits": {"train": rows(label=["0", "1", "0,1", "1"])}},
        r"E-LABELS: column 'label': '0,1' .*several labels, '0' and '1', .*data\.label_separator=\"','\"",
    ),
    "a separator where there are lists": (
        {"label_separator": ",", "splits": {"train": rows(label=[["a"], ["b"], ["a"], ["b"]])}},
        "E-LABELS: data.label_separator=','",
    ),
    "scores": (
        {"splits": {"train": rows(label=[0.37, 4.2, 1.5, 3.0])}},
        "E-LABELS: column 'label' holds 4 different numbers in 8 rows",
    ),
    "a mark for a missing label": (
        {"splits": {"train": rows(label=[0, 1, -1, 1])}},
        "E-LABEL-RANGE: .+: train row 2, column 'label': -1 is no label",
    ),
    "a validation split without labels": (
        {"splits": {"train": rows(label=[0, 1, 0, 1]), "validation": rows(label=[-1, -1, -1, -1])}},
        "E-LABEL-RANGE: .+: validation row 0, column 'label': -1 is no label",
    ),
    "a text of nothing for a label": (
        {"splits": {"train": rows(label=["good", " ", "bad", "bad"])}},
        "E-LABEL-RANGE: .+: train row 1, column 'label': ' ' is no label",
    ),
    "a number for a column's name": ({"columns": {"label": 1}}, r"E-COLUMN: data\.columns\.label=1: a number is"),
    "no column": ({"columns": {"label": None}}, r"E-COLUMN: data\.columns\.label is None"),
    "one label only": (
        {"splits": {"train": rows(label=["good"] * 4)}},
        r"E-LABELS: the only label in train is \['good'\]",
    ),
    "a label twice": ({"labels": ["good", "bad", "good"]}, "E-LABELS: data.labels names 'good' twice"),
    "a label that training has not": (
        {"splits": {"train": rows(), "validation": rows(label=["good", "bad", "god", "bad"])}},
        r"E-LABEL-RANGE: .+: validation row 2: label 'god' is not one of 'bad', 'good'\. Did you mean 'good'\?",
    ),
    "a label is missing": (
        {"splits": {"train": rows(label=["good", None, "bad", "bad"])}},
        "E-LABEL-RANGE: .+: train row 1, column 'label': None is no label",
    ),
    "longer than the tokenizer says": (
        {"max_length": 65},
        "E-SEQ-LEN: model.max_length=65: the model takes 64 tokens at most",
    ),
    "no room for a text": ({"max_length": 2}, "E-SEQ-LEN: model.max_length=2: too short"),
    "no room for a pair": (
        {"max_length": 3, "columns": {"pair": "b"}, "splits": {"train": rows(b=SHORT, label=[0, 1, 0, 1])}},
        "E-SEQ-LEN: model.max_length=3: too short",
    ),
    "no such model": (
        {"checkpoint": "/no/such/model"},
        "E-MODEL: model.checkpoint=/no/such/model: there is no such folder",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_learnt_from_is_one_clear_error(tmp_path: Path, tiny_bert: str, fault: str) -> None:
    arguments, message = FAULTS[fault]
    with pytest.raises(InputError, match=f"^{message}"):
        make(tmp_path, **{"checkpoint": tiny_bert, **arguments})


def test_more_tokens_than_the_model_has_positions_are_refused_though_its_tokenizer_has_no_limit(
    tmp_path: Path, tiny_bert: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(tiny_bert).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"^E-SEQ-LEN: model\.max_length=65: the model takes 64 tokens at most"):
        make(tmp_path, str(folder), max_length=65)
    assert make(tmp_path, str(folder), max_length=64).max_length == 64


def test_numbers_joined_in_one_cell_become_the_names_that_a_file_has_for_them(tmp_path: Path, tiny_bert: str) -> None:
    (tmp_path / "rows.tsv").write_text("what a day\t0,2\tx1\nnever again\t1\tx2\nso so\t\tx3\n" * 4, encoding="latin-1")
    (tmp_path / "names.txt").write_text("joy\nanger\nlove\n")
    data = TextClassificationData(
        checkpoint=tiny_bert,
        train=str(tmp_path / "rows.tsv"),
        validation=str(tmp_path / "rows.tsv"),
        header=False,
        columns={"text": 0, "label": 1},
        label_separator=",",
        label_names=str(tmp_path / "names.txt"),
        max_length=16,
    )
    data.setup()
    assert data.model_arguments()["labels"] == ["joy", "anger", "love"]
    assert [row["labels"] for row in data.splits["train"].select(range(3))] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
