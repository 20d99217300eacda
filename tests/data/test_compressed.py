import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from loralight.data.inputs import read_inputs
from loralight.data.splits import load_splits
from loralight.errors import InputError

CSV = "text;label\nein schöner Film;gut\nein Film, der langweilt;schlecht\n"
PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("encoding", [None, "cp1252"])
def test_a_compressed_table_is_read_like_the_plain_one(tmp_path: Path, ending: str, encoding: str | None) -> None:
    content = CSV.encode(encoding or "utf-8")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.csv").write_bytes(content)
    (tmp_path / "packed").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "packed" / f"{split}.csv{ending}").write_bytes(PACK[ending](content))
    found = load_splits(path=str(tmp_path / "packed"), encoding=encoding)
    plain = load_splits(train=str(tmp_path / "plain" / "train.csv"), validation_fraction=0.5, encoding=encoding)
    expected = {"ein schöner Film": "gut", "ein Film, der langweilt": "schlecht"}
    assert set(found) == {"train", "validation"}
    assert {row["text"]: row["label"] for split in plain.values() for row in split} == expected
    for split in found.values():
        assert {row["text"]: row["label"] for row in split} == expected


def test_shards_of_the_hub_may_be_compressed(tmp_path: Path) -> None:
    for shard in range(2):
        rows = f'{{"text": "row {shard}", "label": {shard}}}\n'
        (tmp_path / f"train-0000{shard}-of-00002.json.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "test.json.gz").write_bytes(gzip.compress(b'{"text": "a", "label": 0}\n'))
    splits = load_splits(path=str(tmp_path), validation_fraction=0.5)
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == ["row 0", "row 1"]


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "train.csv.gz"
    for text in ("old", "new"):
        file.write_bytes(gzip.compress(f"text,label\n{text},1\nother,0\n".encode()))
        splits = load_splits(train=str(file), validation=str(file))
        assert splits["train"]["text"][0] == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\na,b\n", "Not a gzipped file"),
        (gzip.compress(CSV.encode())[:-20], "ended before"),
        (gzip.compress(CSV.encode("cp1252")), "likely it is in latin-1"),
        (b"", "holds no rows"),
    ],
    ids=["not compressed", "cut short", "in another encoding", "empty"],  # the bytes have the time in them
)
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rows.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=rf"^E-DATA\S*: \S*rows\.csv\.gz: .*{said}"):
        load_splits(train=str(tmp_path / "rows.csv.gz"))


def test_predictions_are_made_of_compressed_records(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert read_inputs(str(tmp_path / "rows.jsonl.gz")) == [{"text": "a"}, {"text": "b"}]
