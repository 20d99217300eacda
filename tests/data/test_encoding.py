"""Encoded rows come from the cache as long as rows, arguments and code are what they were."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from datasets import Dataset, are_progress_bars_disabled

from loralight.data import encoding
from loralight.data.encoding import encode_rows
from loralight.data.splits import read_file

SOURCE = """
from .sizes import FACTOR
from pathlib import Path

def encode(columns, numbers, *, log, offset):
    with Path(log).open("a") as opened:
        opened.write(f"{len(numbers)} ")
    return {"made": [FACTOR * x + n + offset for x, n in zip(columns["x"], numbers)]}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    """Rows in a file, as only such are cached."""
    Dataset.from_dict({"x": [1, 2, 3], "y": [0, 0, 0]}).to_parquet(tmp_path / "rows.parquet")
    found: Dataset = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    return found


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package whose function multiplies by a number in another of its files."""
    folder = tmp_path / "somebody_s_task"
    folder.mkdir()
    for name, text in {"__init__": "", "sizes": "FACTOR = 10\n", "data": SOURCE}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    _forget()


def _forget() -> None:
    """As in a new process."""
    encoding._digest.cache_clear()
    for name in [name for name in sys.modules if name.startswith("somebody_s_task")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _module() -> ModuleType:
    _forget()
    return importlib.import_module("somebody_s_task.data")


def test_rows_are_encoded_with_their_numbers_and_once(rows: Dataset, plugin: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        made = encode_rows(rows, _module().encode, log=str(log), offset=0)
        assert made.to_dict() == {"made": [10, 21, 32]}
    assert log.read_text() == "3 "


def test_other_arguments_are_encoded_anew(rows: Dataset, plugin: Path, tmp_path: Path) -> None:
    for offset in (0, 5):
        made = encode_rows(rows, _module().encode, log=str(tmp_path / "log"), offset=offset)
        assert made["made"][0] == 10 + offset


@pytest.mark.filterwarnings("error")
def test_a_change_anywhere_in_the_plugin_s_code_is_encoded_anew(rows: Dataset, plugin: Path, tmp_path: Path) -> None:
    given = {"log": str(tmp_path / "log"), "offset": 0}
    assert encode_rows(rows, _module().encode, **given)["made"][0] == 10
    (plugin / "sizes.py").write_text("FACTOR = 1000\n")
    assert encode_rows(rows, _module().encode, **given)["made"][0] == 1000


def test_another_version_of_a_library_is_encoded_anew(
    rows: Dataset, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    for version in ("1", "2"):
        monkeypatch.setattr(encoding.tokenizers, "__version__", version)
        encode_rows(rows, _module().encode, log=str(log), offset=0)
    assert log.read_text() == "3 3 "


def lengths_of(columns: dict[str, list[str]], _: list[int]) -> dict[str, list[int]]:
    return {"length": [len(text) for text in columns["text"]]}


def test_short_passes_over_rows_draw_no_bar(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\n" + "a\n" * 50)
    rows = read_file(str(file))
    encode_rows(rows, lengths_of)
    assert not are_progress_bars_disabled(), "for whoever uses datasets beside"
    printed = capfd.readouterr().err
    assert "Map" not in printed and "Generating" not in printed and "encoding" not in printed
