"""Train, validation and test rows from the hub, a folder or files, under any of their usual names."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import Dataset

from loralight.data import csv_files
from loralight.data.bars import hiding_bars
from loralight.data.charsets import check_encoding, check_text
from loralight.data.columns import is_missing
from loralight.data.compressed import inner_name
from loralight.data.json_files import accepted, read_other_json
from loralight.data.named_files import by_name, is_about, is_split, name_of, names_of, shown
from loralight.data.origin import Origin
from loralight.data.written_lists import read_lists
from loralight.errors import InputError, did_you_mean
from loralight.logs import logger
from loralight.resources import no_such_file, resolve

Readers = Mapping[str, Callable[..., Dataset]]
"""Readers of files by suffix; the reader under ``/`` reads a folder that is one split, see `files_by_class`.

A reader with an argument ``encoding`` gets ``data.encoding``."""

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The kinds of data files: suffix and the name of their reader in `datasets`."""

LABEL_NAMES = "labels.json"
"""A file that names the numbers in a column of labels, and lies beside the rows."""

_SAID_OF_NO_ROWS = ("No columns to parse from file", "corresponds to no data")  # by pandas and datasets
_SAID_OF_RAGGED_ROWS = ("Error tokenizing data", "Length of header or names")
_OTHER_DELIMITER = ". If something else stands between its columns, say data.delimiter=tab, or what it is"
_SAVED = (datasets.config.DATASETDICT_JSON_FILENAME, datasets.config.DATASET_STATE_JSON_FILENAME)
"""Files in a folder that ``save_to_disk`` of the library of data sets has written."""

NO_TABLES = {
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
        "an archive; unpack it, and give the file or folder",
    ),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet; save its rows as CSV"),
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt"), "a pickle, which may run code when it is opened; save its rows as Parquet"
    ),
}
"""Endings of files that are taken for none of `FORMATS`, and what to do with them."""


class Splits(dict[str, Dataset]):
    """The splits of a data set by name.

    Args:
        rows: the rows of each split.
        origins: where the rows of each split come from, for messages.
        hint: what else may be meant if the rows lack a column.
    """

    def __init__(self, rows: Mapping[str, Dataset], origins: dict[str, Origin], hint: str = "") -> None:
        super().__init__(rows)
        self.origins, self.hint = origins, hint


class _Found(NamedTuple):
    """A split that can be read, or a part of one.

    Args:
        source: a file, a folder, or the data set's name on the hub.
        files: one or more that it is read from, or the source.
        read: one of them.
    """

    source: str
    files: Sequence[str]
    read: Callable[[str], Dataset]


def load_splits(
    *,
    path: str | None = None,
    name: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    validation_fraction: float = 0.1,
    limit_rows: int | None = None,
    limit_eval_rows: int | None = None,
    drop_missing: Sequence[str | int] | str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    seed: int = 0,
    split_seed: int = 0,
    readers: Readers | None = None,
) -> Splits:
    """The splits of a data set.

    Args:
        path: a hub name, a folder that `datasets` has saved, a folder of files named after their splits
            (``train.csv``, ``dev.jsonl``, ...), or one file, by itself or the only one in a folder, which is the train
            split. A split may be in several files, see `loralight.data.named_files`. If ``readers`` has a ``/``, a
            split may be a folder, and a folder of other folders alone is the train split.
        name: the hub data set's configuration, if it has several; in a copy on this disk, its folder.
        train: a file, or the split's name in ``path`` (found if None). If this is a file, ``path`` is not read.
        validation: a file, which replaces the split in ``path``, or the split's name in ``path`` (found if None).
        test: a file or a name, like ``validation``.
        validation_fraction: share of the training rows that is held out if there is no validation split.
        limit_rows: number of train rows to use, chosen at random; all if None.
        limit_eval_rows: number of rows to use of validation and of test each, chosen at random; all if None. Scores are
            then only rough.
        drop_missing: columns; a row in which one of them has no value is left out, and their number is logged. A test
            split need not have the columns, nor a value in any row.
        header, delimiter, encoding: see `read_file`.
        seed: of the choice of train rows.
        split_seed: of the rows that are held out, and of the choice of validation and test rows. It is another one, as
            scores of runs with different seeds can be compared on the same rows alone.
        readers: readers of formats besides `FORMATS`.

    Returns:
        ``train``, ``validation`` and, if there is one, ``test``.

    Raises:
        InputError: nothing can be read there (``E-DATA``), there is no training split or no row in it
            (``E-DATA-EMPTY``), or a column of ``drop_missing`` is not there (``E-COLUMN``).
    """
    given = {"train": train, "validation": validation, "test": test}
    files = [path, *given.values()]
    reading = _reading(readers or {}, files, header=header, delimiter=delimiter, encoding=encoding)
    sources = {split: resolve(name) for split, name in given.items() if name and _kind(resolve(name)) in reading}
    splits = {split: reading[_kind(file)](file) for split, file in sources.items()}
    origins = {split: Origin(split=split, source=file) for split, file in sources.items()}
    hint = _folders_hint(path, reading) if path and "train" not in sources else ""
    odd = {split: value for split, value in given.items() if value and split not in sources}
    for split, value in odd.items():
        if path is None or Path(value).is_file():
            raise InputError("E-DATA", f"data.{split}={value}: {_expected(value, reading)}")
    if path is not None and "train" not in sources:
        found = _read_path(resolve(path), name, reading)
        kinds = {_kind(file) if Path(file).is_file() else "/" for one in found.values() for file in one.files}
        wanted = {split: value for split, value in given.items() if split not in sources}
        others = [value for value in wanted.values() if value]
        names = {
            split: names_of(
                split, value, found, path=path, others=others, are_parts=len(kinds) == 1 and "/" not in kinds
            )
            for split, value in wanted.items()
        }
        for split, some in names.items():
            if some and not (split == "test" and given[split] is None and _has_no_labels(found[some[0]])):
                splits[split], origins[split] = _joined([found[one] for one in some], split, path)
    if "train" not in splits:
        where = f"{path} has no training split, only {shown(found)}" if path else "no data is given"
        raise InputError(
            "E-DATA", f"{where}. Set data.path to a hub name or folder, or data.train to a file or split.{hint}"
        )
    loaded = Splits(splits, origins, hint)
    _drop_missing(loaded, [drop_missing] if isinstance(drop_missing, str) else [*map(str, drop_missing or ())])
    if "validation" not in loaded:
        _hold_out(loaded, validation_fraction, split_seed)
    _limit(loaded, ["train"], "limit_rows", limit_rows, seed)
    _limit(loaded, ["validation", "test"], "limit_eval_rows", limit_eval_rows, split_seed)
    return loaded


def _folders_hint(path: str, reading: Readers) -> str:
    """A hint for tables that are no training rows: the folders beside them may be the labels."""
    folder = Path(path).expanduser()
    has_folders = "/" in reading and folder.is_dir() and any(one.is_dir() for one in folder.iterdir())
    return f" If the folders in {path} are the labels: data.train={path}" if has_folders else ""


def _has_no_labels(test: _Found) -> bool:
    """Whether a test split is a folder of files whose labels neither folders nor a table tell; it is left out then."""
    folder = Path(test.source)
    if not folder.is_dir() or any(one.is_dir() or one.stem == "metadata" for one in folder.iterdir()):
        return False
    logger.info("test: left out, it has no labels (no folders in %s)", folder)
    return True


def _drop_missing(splits: Splits, columns: Sequence[str]) -> None:
    """Leave out rows without a value in one of the columns."""
    for split, rows in splits.items():
        if split != "test":
            check_columns(rows, columns, split, setting="data.drop_missing")
        lacking = {column: list(map(is_missing, rows[column])) for column in columns if column in rows.column_names}
        given = [flags for flags in lacking.values() if split != "test" or not all(flags)]  # else a hidden test split
        kept = [row for row, lacks in enumerate(zip(*given, strict=True)) if not any(lacks)]
        if not given or len(kept) == len(rows):
            continue
        if not kept:
            raise InputError("E-DATA-EMPTY", f"{split}: data.drop_missing={list(columns)} leaves no row")
        logger.info(
            "%s: %d of %d rows have no %s, and are left out",
            split,
            len(rows) - len(kept),
            len(rows),
            " or ".join(columns),
        )
        splits.origins[split] = splits.origins[split].select(kept, split)
        splits[split] = rows.select(kept)


def _limit(splits: Splits, names: Sequence[str], setting: str, limit: int | None, seed: int) -> None:
    if limit is not None and limit < 1:
        raise InputError("E-DATA", f"data.{setting} is {limit}; give at least 1, or null for all rows")
    for name in names:
        if limit is not None and limit < len(splits.get(name, ())):
            chosen = _numbers(splits[name]).shuffle(seed=seed)["number"][:limit]
            splits.origins[name] = splits.origins[name].select(chosen, name)
            splits[name] = splits[name].select(list(chosen))


def _reading(
    readers: Readers, files: Iterable[str | None], *, header: bool | None, delimiter: str | None, encoding: str | None
) -> Readers:
    """The reader of each kind of file; with a delimiter, given files of other suffixes are read as tables too."""
    encoding = check_encoding(encoding)
    table = partial(read_file, header=header, delimiter=delimiter, encoding=encoding)
    told = dict(readers)
    if encoding is not None:
        takes = [kind for kind, read in readers.items() if "encoding" in inspect.signature(read).parameters]
        told |= {kind: partial(readers[kind], encoding=encoding) for kind in takes}
    if delimiter is None:
        return {**dict.fromkeys(FORMATS, table), **told}
    kinds = {_kind(resolve(file)) for file in files if file and Path(resolve(file)).is_file()}
    return {**told, **dict.fromkeys(kinds - set(told) - set(FORMATS), table), **dict.fromkeys(FORMATS, table)}


def _hold_out(splits: Splits, fraction: float, seed: int) -> None:
    """Hold out a share of the training rows as the validation split."""
    if not 0 < fraction < 1:
        raise InputError("E-DATA", f"data.validation_fraction is {fraction}; give a share between 0 and 1")
    if (count := len(splits["train"])) < 2:
        source = splits.origins["train"].source
        raise InputError(
            "E-DATA-EMPTY",
            f"{source}: the train split has {count} rows, too few to hold out a validation split"
            f"{_nested_hint(splits['train'])}",
        )
    halves = _numbers(splits["train"]).train_test_split(test_size=fraction, seed=seed)
    _choose(splits, {"train": halves["train"]["number"], "validation": halves["test"]["number"]})


def _choose(splits: Splits, chosen: Mapping[str, Sequence[int]]) -> None:
    """Make splits from the train rows with these numbers."""
    rows, origin = splits["train"], splits.origins["train"]
    splits.update({split: rows.select(list(numbers)) for split, numbers in chosen.items()})
    splits.origins.update({split: origin.select(numbers, split) for split, numbers in chosen.items()})


def _numbers(rows: Dataset) -> Dataset:
    """The numbers of all rows as a data set, from which rows are chosen by number."""
    return Dataset.from_dict({"number": range(len(rows))})


def check_columns(
    rows: Dataset, columns: Iterable[str], split: str, *, setting: str = "data.columns.<role>", hint: str = ""
) -> None:
    """Raise ``E-COLUMN`` unless ``rows`` has all ``columns``; the message names the ``setting`` that gives them."""
    for column in columns:
        if column not in rows.column_names:
            has = ", ".join(repr(name) for name in rows.column_names)
            raise InputError(
                "E-COLUMN",
                f"the {split} split has no column {column!r}; it has {has}.{did_you_mean(column, rows.column_names)} "
                f"Say which with {setting}=<name>{_nested_hint(rows)}."
                f"{csv_files.header_hint(rows)}{_inner_hint(rows, column)}{hint}",
            )


def _inner_hint(rows: Dataset, wanted: str) -> str:
    """A hint for a missing column: it may be a field of records in another column, as in nested JSON."""
    field = wanted.rpartition(".")[2]
    holds = [name for name, kind in rows.features.items() if isinstance(kind, dict) and field in kind]
    return f" {holds[0]!r} holds records with a field {field!r}: make that field a column." if holds else ""


def _nested_hint(rows: Dataset) -> str:
    """A hint for JSON of a single object: its rows may be a list in one of its fields."""
    if len(rows) > 1:
        return ""
    lists = [name for name, kind in rows.features.items() if isinstance(getattr(kind, "feature", None), dict)]
    return f". {lists[0]!r} is a list of records: write these as the file, as jq '.{lists[0]}' does" if lists else ""


def column_name(given: Any, role: str, *, header: bool | None = None) -> str:
    """The name of a column that the user gave by name, or by its place in a file without a header line.

    Raises:
        InputError: it is neither, or a place although the file has a header line (``E-COLUMN``).
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, int) or isinstance(given, bool):
        raise InputError("E-COLUMN", f"data.columns.{role} is {given!r}; give the name of a column")
    if header is not False:
        raise InputError(
            "E-COLUMN",
            f"data.columns.{role}={given}: a number is the place, from 0, of a column in a CSV or TSV file without a "
            f"header line, of which data.header=false tells. If {given} is a name, quote it: "
            f"\"data.columns.{role}='{given}'\"",
        )
    return str(given)


def read_file(
    file: str, *, header: bool | None = None, delimiter: str | None = None, encoding: str | None = None
) -> Dataset:
    """One CSV, TSV, JSON(L) or Parquet file, all but the last also compressed, such as ``rows.csv.gz``.

    Args:
        file: its path.
        header: whether the first line of a CSV or TSV file names its columns; if not, they are called 0, 1, 2, ... If
            None, the line is taken for names; one that looks like a row is refused.
        delimiter: the text between the columns of a CSV or TSV file; found if None. If given, a file with another
            suffix is also read as such a table.
        encoding: of a CSV, TSV or JSON file; UTF-8 if None.

    Raises:
        InputError: the file is missing, unreadable or of another kind (``E-DATA``), or its first line looks like a row
            (``E-HEADER``).
    """
    suffix, delimiter = _kind(file), csv_files.check_delimiter(delimiter)
    if suffix not in FORMATS and delimiter is None:
        raise InputError("E-DATA", f"{file}: {_expected(file, FORMATS)}")
    if not Path(file).is_file():
        raise no_such_file(file, FORMATS)
    kind = FORMATS.get(suffix, "csv")
    is_csv = kind == "csv"
    encoding = check_encoding(encoding)
    if kind != "parquet":
        check_text(file, encoding)
    arguments = csv_files.reading(file, header=header, delimiter=delimiter, encoding=encoding) if is_csv else {}
    if kind == "json" and encoding:
        arguments["encoding"] = encoding
    with _one_message(file):
        rows = read_other_json(file, encoding) if kind == "json" else None
        if rows is None:
            rows = datasets.load_dataset(kind, data_files=file, split="train", **arguments)
        rows = read_lists(accepted(rows, file), file)
    if is_csv and header is None:
        csv_files.check_header(rows, file)
    return rows


def _kind(source: str) -> str:
    """The key of a reader in `Readers`: a file's suffix without that of a compression, or ``/`` for a folder."""
    return "/" if Path(source).is_dir() else inner_name(source).suffix.lower()


def _expected(file: str, kinds: Iterable[str]) -> str:
    """What is said of a file that no reader takes."""
    if told := NO_TABLES.get(Path(file).suffix.lower()):
        return told
    suffixes = ", ".join(kind for kind in kinds if kind != "/")
    folder = ", nor a folder" if "/" in kinds else ""
    other = "A table of another ending needs its delimiter, such as data.delimiter=tab; rename any other file"
    return f"not a file that ends in {suffixes}{folder}. {other}"


def _read_path(path: str, name: str | None, reading: Readers) -> Mapping[str, _Found]:
    """The splits in ``path``, by their names there."""
    folder = Path(path).expanduser()
    if name is not None and (folder / name).is_dir():  # a configuration in a copy of a hub's repository
        folder = folder / name
    if folder.is_file():
        kind = _kind(str(folder))
        if kind in NO_TABLES or kind not in reading:
            raise InputError("E-DATA", f"data.path={path}: {_expected(path, reading)}")
        return {"train": _Found(str(folder), [str(folder)], reading[kind])}
    if any((folder / file).is_file() for file in _SAVED):
        with _one_message(path):
            saved = datasets.load_from_disk(str(folder)).with_format(None)
        return _as_they_are(saved if isinstance(saved, dict) else {"train": saved}, path)
    if folder.is_dir():
        return _read_folder(folder, reading)
    if folder.is_absolute() or path.startswith((".", "~")):
        raise InputError("E-DATA", f"data.path={path}: there is no such folder")
    with _one_message(path):
        loaded = datasets.load_dataset(path, name)
    return _as_they_are(loaded, path)


def _read_folder(folder: Path, reading: Readers) -> Mapping[str, _Found]:
    """The splits in a folder of files, or of folders of classes."""
    visible = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    files = [one for one in visible if _kind(str(one)) in reading and one.name != LABEL_NAMES and not is_about(one)]
    if not any(is_split(inner_name(file).stem) for file in files):
        tables = [file for file in files if file.is_file()]
        if not tables and any(file.is_file() and _kind(str(file)) in reading for file in folder.glob("data/*")):
            return _read_folder(folder / "data", reading)  # as repositories on the hub have it
        if not tables and (several := [one.name for one in visible if one.is_dir() and _has_split(one, reading)]):
            raise InputError(
                "E-DATA",
                f"data.path={folder}: the data is in folders of its own: {shown(several)}. Choose one: "
                f"data.name={several[0]}",
            )
        if files and not tables:
            return {"train": _Found(str(folder), [str(folder)], reading["/"])}  # folders of classes
        files = tables
    if not files:
        endings = ", ".join(kind for kind in reading if kind != "/")
        folders = ", and there are no folders of labels in it" if "/" in reading else ""
        has = f"it has {shown(file.name for file in visible)}" if visible else "it is empty"
        raise InputError(
            "E-DATA",
            f"data.path={folder}: no file in this folder ends in {endings}{folders}; {has}. "
            "Rename the file of each split to train, validation or test, with one of these endings",
        )
    return {
        name: _Found(str(some[0]), [*map(str, some)], reading[_kind(str(some[0]))])
        for name, some in by_name(str(folder), files).items()
    }


def _has_split(folder: Path, reading: Readers) -> bool:
    """Whether a file in the folder has the name of a split."""
    return any(is_split(name_of(file)) and file.is_file() and _kind(str(file)) in reading for file in folder.iterdir())


def _as_they_are(splits: Mapping[str, Dataset], path: str) -> dict[str, _Found]:
    return {split: _Found(path, [path], partial(_as_is, rows)) for split, rows in splits.items()}


def _as_is(rows: Dataset, source: str) -> Dataset:
    return read_lists(rows, source)


def _joined(found: Sequence[_Found], split: str, path: str) -> tuple[Dataset, Origin]:
    """The rows of a split that is in one or more files, and where they come from.

    Raises:
        InputError: the files have different columns (``E-COLUMN``), or types of columns (``E-DATA``).
    """
    files = [(file, one.read) for one in found for file in one.files]
    parts = [read(file) for file, read in files]
    if len(parts) == 1:
        return parts[0], Origin(split=split, source=found[0].source)
    first, *others = parts
    for (file, _), rows in zip(files[1:], others, strict=True):
        if set(rows.column_names) != set(first.column_names):
            raise InputError(
                "E-COLUMN",
                f"{files[0][0]} and {file} are read as one split, {split}, and have different columns: "
                f"{', '.join(map(repr, first.column_names))} and {', '.join(map(repr, rows.column_names))}. Give one "
                f"as data.{split}=<file>",
            )
    logger.info("%s: %d files, from %s to %s", split, len(files), Path(files[0][0]).name, Path(files[-1][0]).name)
    with _one_message(path):
        whole = datasets.concatenate_datasets(parts)
    lengths = [(file, len(rows)) for (file, _), rows in zip(files, parts, strict=True)]
    return whole, Origin(split=split, source=str(Path(files[0][0]).parent), files=lengths)


@contextmanager
def _one_message(source: str) -> Iterator[None]:
    """Turn an error of `datasets` about data that it cannot reach or read into one message."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with hiding_bars(), warnings.catch_warnings():  # a row with more cells than the header would lose some
            warnings.filterwarnings("error", message="Length of header or names does not match length of data")
            yield
    except Exception as error:  # its readers pass on errors of pandas, pyarrow and the hub's client
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = " ".join(str(root).split()) or type(root).__name__
        if isinstance(root, StopIteration) or any(said in reason for said in _SAID_OF_NO_ROWS):
            raise InputError("E-DATA-EMPTY", f"{source}: holds no rows") from error
        if Path(source).exists():
            other = _OTHER_DELIMITER if any(said in reason for said in _SAID_OF_RAGGED_ROWS) else ""
            raise InputError("E-DATA", f"{source}: cannot be read: {reason[:300]}{other}") from error
        raise InputError(
            "E-DATA",
            f"{source}: cannot be read: {reason[:300]}. No such folder here either; a hub name needs network access, "
            "or a copy in its cache",
        ) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
