"""Reports obvious mistakes in a command before torch is imported, which takes seconds.

Each check is made again later with more information. Only settings that are certain to be refused are refused here.
"""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loralight.errors import InputError, did_you_mean
from loralight.logs import logger
from loralight.resources import no_such_file, resolve

_TABLES = {".csv": ",", ".tsv": "\t"}
_FILES = (*_TABLES, ".json", ".jsonl", ".parquet")
_SPLITS = ("train", "validation", "test")
_LARGE = 2**26  # bytes; what it would take to read such a file twice is not worth an earlier message
_LOGGERS = {  # by Lightning's class: packages of which it needs one
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
}


def first_look(settings: Mapping[str, Any]) -> None:
    """Check the files, columns, loggers and model folder of a training's settings.

    Raises:
        InputError: a file of rows is missing, or cannot be read (``E-DATA``, ``E-HEADER``, ...), or has none of the
            columns (``E-COLUMN``), the model's folder is missing (``E-MODEL``) or a logger's package is missing
            (``E-PACKAGE``).
    """
    data = settings.get("data") or {}
    for split in _SPLITS:
        _check_file(data.get(split))
    _check_columns(data)
    if str(data.get("_target_")).startswith("loralight."):  # a plugin may read such files in a way of its own
        _read_tables(data)
    for node in (settings.get("logger") or {}).values():
        _check_logger(node)
    checkpoint = (settings.get("model") or {}).get("checkpoint")
    if checkpoint not in [value for name, value in data.items() if name != "checkpoint"]:  # else the data makes it
        _check_checkpoint(checkpoint)


def _read_tables(data: Mapping[str, Any]) -> None:
    """Read tables of a moderate size as they are read later, from the cache that this fills."""
    how = {name: data.get(name) for name in ("header", "delimiter", "encoding")}
    columns = data.get("columns") or {}
    odd = how["header"] not in (None, True, False) or not isinstance(how["encoding"], str | None)
    if (
        odd
        or not isinstance(columns, Mapping)
        or columns.get("label", "") is None
        or any(isinstance(name, bool) for name in columns.values())
    ):
        return  # told with the other settings of a wrong type
    given = {name: data[name] for name in ("path", *_SPLITS) if isinstance(data.get(name), str)}
    for name, source in given.items():
        if source.startswith("pkg://"):
            continue  # a package's own data
        file = Path(resolve(source))
        if not file.is_file() or file.stat().st_size > _LARGE:
            continue
        if name == "path" and "train" in given:
            continue  # then it is not read, or it has that split
        from loralight.data.splits import NO_TABLES, check_columns, load_splits, read_file  # a second, not torch's many

        if name == "path" and file.suffix.lower() in NO_TABLES:
            load_splits(path=str(file))  # refuses it
        if (kind := file.suffix.lower()) and kind not in (*_FILES, *NO_TABLES):
            continue  # a task's own reader may take it
        needed = _needed(data) if name in ("path", "train") else {}
        with _telling_later():
            rows = read_file(str(file), **how)
        for role, wanted in needed.items():
            check_columns(rows, wanted, "train", setting=f"data.columns.{role}")


@contextmanager
def _telling_later() -> Iterator[None]:
    """Leave lines on the rows to the run, which reads them again."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _needed(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns that a table must have, by role: those named of rows with labels; other rows have several forms.

    Raises:
        InputError: a column is given by a number, though the table has a header line (``E-COLUMN``).
    """
    from loralight.data.splits import column_name

    columns = data.get("columns") or {}
    if "label" not in columns:
        return {}
    lists = {role: names if _is_list(names) else [names] for role, names in columns.items()}
    header = data.get("header")
    return {
        role: [column_name(name, role, header=header) for name in names if name is not None]
        for role, names in lists.items()
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_file(name: Any) -> None:
    if not isinstance(name, str) or Path(name).suffix.lower() not in _FILES or "://" in name:
        return
    if not Path(resolve(name)).exists():
        raise no_such_file(resolve(name), _FILES)


def _check_columns(data: Mapping[str, Any]) -> None:
    """Raise ``E-COLUMN`` if the first line of a table certainly names columns, and none of those that are needed."""
    columns = data.get("columns")
    names = _names(data)
    if not names or not isinstance(columns, Mapping):
        return
    wanted = [name for name in columns.values() if isinstance(name, str)]
    if not wanted or set(wanted) & set(names):
        return
    shown = ", ".join(map(repr, names))
    near = next(filter(None, (did_you_mean(name, names) for name in wanted)), "")
    raise InputError(
        "E-COLUMN",
        f"{data['train']} has columns {shown}, and none of {', '.join(map(repr, dict.fromkeys(wanted)))}.{near} Say "
        f"which with data.columns.<role>=<name>; the roles are {', '.join(columns)}",
    )


def _names(data: Mapping[str, Any]) -> list[str]:
    """The columns of the table of training rows, if they are certain: identifiers in ASCII, unlike most rows."""
    file = data.get("train")
    suffix = Path(file).suffix.lower() if isinstance(file, str) else ""
    if suffix not in _TABLES or data.get("header") is False or data.get("delimiter") or data.get("encoding"):
        return []
    path = Path(resolve(str(file)))
    if not path.is_file():  # a URL or a split's name, which the reader checks
        return []
    with path.open(encoding="ascii", errors="replace", newline="") as opened:
        names = next((cells for cells in csv.reader(opened, delimiter=_TABLES[suffix]) if cells), [])
    return names if len(names) > 1 and all(name.isidentifier() for name in names) else []


def _check_logger(node: Any) -> None:
    target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
    kind = target.rpartition(".")[2]
    packages = _LOGGERS.get(kind, ()) if target.startswith("lightning.") else ()
    if packages and not any(map(find_spec, packages)):
        raise InputError("E-PACKAGE", f"{target} needs another package: pip install {packages[0]}")


def _check_checkpoint(checkpoint: Any) -> None:
    if not isinstance(checkpoint, str) or not checkpoint.startswith(("/", "./", "../", "~", "pkg://")):
        return
    if not Path(resolve(checkpoint)).exists():
        raise InputError("E-MODEL", f"model.checkpoint={checkpoint}: there is no such folder")
