"""Images with one label each, decoded and transformed when they are read."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import default_collate

from loralight.data import (
    FORMATS,
    LabelNames,
    Origin,
    Splits,
    TaskData,
    always_the_commonest,
    are_lists,
    check_splits,
    column_name,
    count_classes,
    counts_line,
    few_rows,
    files_by_class,
    has_no_names,
    label_name,
    list_files,
    name_labels,
    odd_names,
    read_classes,
    read_file,
    repeated_rows,
    replace_column,
    seed_of,
    split_in,
    uneven_rows,
)
from loralight.errors import InputError
from loralight.logs import logger

from .backbone import find_backbone
from .images import MODES, SUFFIXES, convert, open_image, small_jpeg
from .metrics import image_metrics
from .transforms import Transform, evaluation_transform, seeded, training_transform

_NAMES, _BYTES = ("string", "large_string"), ("binary", "large_binary")
_SHOWN = 3  # folders in a message
_SEPARATOR = re.compile(r"[/\\]")  # of folders, here or on the machine where a table was written
_DECODED = 20_000
"""Most images that are all decoded before training (0.2 ms for a small image); else only headers are read."""


class Images(TorchDataset[dict[str, Any]]):
    """A split: images (channels, height, width) with their labels, computed on access.

    Args:
        rows: a data set with the images, undecoded, in ``column``.
        column: name of the column.
        labels: class numbers.
        origin: origin of the rows, for messages.
        mode: Pillow's mode of the model's images.
        transform: image to pixels.
        seed: seed of random changes, together with epoch and row; None if there are none.
    """

    def __init__(
        self,
        *,
        rows: Dataset,
        column: str,
        labels: Sequence[int],
        origin: Origin,
        mode: str,
        transform: Transform,
        seed: int | None,
    ) -> None:
        self.rows, self.column, self.labels, self.origin = rows, column, labels, origin
        self.mode, self.transform, self.seed = mode, transform, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, row = index if isinstance(index, tuple) else (0, index)
        opened, where = self.opened(row)
        image, label = convert(opened, self.mode, where), self.labels[row]
        if self.seed is None:
            return {"images": self.transform(image), "labels": label}
        with seeded(seed_of(self.seed, epoch, row)):
            return {"images": self.transform(image), "labels": label}

    def opened(self, row: int) -> tuple[Any, str]:
        """The image of a row, with only its header read yet, and its place, for messages."""
        return self.open_source(row, self.rows[row][self.column])

    def open_source(self, row: int, source: Any) -> tuple[Any, str]:
        """Like `opened`, from the value in a row's column."""
        file = f" ({source['path']})" if source and source["path"] else ""
        where = f"{self.origin.row(row)}, column {self.column!r}{file}"
        return open_image(source, where), where


class ImageClassificationData(TaskData):
    """Rows of one image and one label.

    A batch holds images (batch, channels, height, width) and labels, class numbers (batch,).

    Args:
        checkpoint: the model, whose own data config says how images are prepared.
        columns: names of the columns: ``image`` (images, their bytes, or names of files) and ``label``.
        architecture: see `find_backbone`.
        image_size: pixels, if not the model's own.
        crop_pct: share of the side of an image that is kept in evaluation, if not the model's own.
        labels: label names in order; else the data set's own, or those found in the rows, sorted.
        label_names: names of the numbers in the label column, or a file with them, see `name_label_ids`; else
            names that lie beside the data, see `names_beside`.
        crop_scale: see `training_transform`, as the next five.
        horizontal_flip: likewise.
        vertical_flip: likewise.
        color_jitter: likewise.
        auto_augment: likewise.
        random_erasing: likewise.
        loading: where the rows are, batch size, workers, seed, see `TaskData`.
    """

    rows_differ_by_epoch = True

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, str | int],
        architecture: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        labels: Sequence[str | float] | None = None,
        label_names: LabelNames | None = None,
        crop_scale: Sequence[float] = (0.5, 1.0),
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.image_column, self.label_column = (
            column_name(columns.get(role), role, header=self.header) for role in ("image", "label")
        )
        read = partial(read_table, column=self.image_column, header=self.header, delimiter=self.delimiter)
        folders = partial(read_image_folder, column=self.image_column)
        self.read_splits = partial(self.read_splits, readers={**dict.fromkeys(FORMATS, read), "/": folders})
        self.given_labels = None if labels is None else [label_name(name) for name in labels]
        self.label_names = label_names
        self.find_backbone = partial(find_backbone, checkpoint, architecture)
        self.image_size, self.crop_pct = image_size, crop_pct
        self.training_transform = partial(
            training_transform,
            crop_scale=crop_scale,
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            random_erasing=random_erasing,
        )
        self.names: list[str] = []
        self.notes: list[str] = []
        self.kinds: dict[str, Counter[Any]] = {}
        self.contents: dict[str, list[int]] = {}

    def load(self) -> dict[str, Images]:
        self.preparation = self.find_backbone().preparation(image_size=self.image_size, crop_pct=self.crop_pct)
        self.transforms = {"train": self.training_transform(self.preparation)}
        rows = self.read_splits()
        self.notes = check_splits(rows, [self.image_column, self.label_column], labels=[self.label_column])
        labels = self._labels(rows)
        splits = {split: self._images(rows.origins[split], part, labels[split]) for split, part in rows.items()}
        decoded = sum(map(len, splits.values())) <= _DECODED
        for split, images in splits.items():
            self.kinds[split], self.contents[split] = _inspect(images, decoded=decoded)
        return splits

    def _labels(self, rows: Splits) -> dict[str, list[int]]:
        """The class number of each row; also sets the names of the classes."""
        column = [self.label_column]
        if are_lists(rows["train"], column):
            raise InputError("E-LABELS", f"column {self.label_column!r} holds lists; an image has one label")
        self.given_labels, told = name_labels(rows, column, self.label_names, self.given_labels)
        self.notes += told
        limited, several = self.limit_rows is not None, "An image has one label"
        self.are_found = self.given_labels is None and has_no_names(rows["train"], column)
        self.names, numbers = read_classes(rows, column, given=self.given_labels, limited=limited, several=several)
        return {split: [number for (number,) in found] for split, found in numbers.items()}

    def _images(self, origin: Origin, rows: Dataset, labels: list[int]) -> Images:
        split = origin.split
        evaluation = evaluation_transform(self.preparation)
        return Images(
            rows=_undecoded(rows, self.image_column, split),
            column=self.image_column,
            labels=labels,
            origin=origin,
            mode=MODES[self.preparation["input_size"][0]],
            transform=self.transforms.get(split, evaluation),
            seed=self.seed if split in self.transforms else None,
        )

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(default_collate(rows))

    def model_arguments(self) -> dict[str, Any]:
        return {"labels": self.names, "label_counts": self._counts(), "image_column": self.image_column}

    def examples(self, count: int) -> list[tuple[Any, str]]:
        split = "test" if "test" in self.splits else "validation"
        images = self.splits[split]
        chosen = range(0, len(images), -(-len(images) // count))  # from first to last: rows may be sorted by label
        return [
            (
                {self.image_column: images.rows[row][self.image_column], "file": _short(images, row)},
                self.names[images.labels[row]],
            )
            for row in chosen
        ]

    def shown(self, split: str, row: int) -> str:
        return _short(self.splits[split], row)

    def asked(self, split: str, row: int) -> list[Any]:
        images = self.splits[split]
        source = images.rows[row][images.column]
        content = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
        return [content, self.names[images.labels[row]]]

    def thumbnail(self, split: str, row: int) -> bytes | None:
        image, where = self.splits[split].opened(row)
        return small_jpeg(convert(image, "RGB", where))

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of always answering the most common training label, or labels."""
        return always_the_commonest(
            image_metrics(len(self.names)), self._counts(), torch.tensor(self.splits[split].labels)
        )

    def report(self) -> list[str]:
        channels, height, width = self.preparation["input_size"]
        lines = [f"{split}: {_described(kinds)}" for split, kinds in self.kinds.items()]
        lines.append(
            f"the model takes {'grey' if channels == 1 else 'colour'} images of {width} x {height} pixels"
            f" ({self.preparation['interpolation']}, {self.preparation['crop_pct']:.1%} of the side in evaluation)"
        )
        lines.append(f"labels in train: {counts_line(self.names, self._counts())}")
        odd = odd_names(self.names) if self.are_found else []
        few = [*few_rows(self.names, self._counts()), *uneven_rows(self.names, self._counts())]
        return [*lines, *self.notes, *few, *odd, *repeated_rows(self.contents, alike="byte for byte")]

    def _counts(self) -> list[int]:
        return count_classes(self.splits["train"].labels, len(self.names))


def read_image_folder(folder: str, *, column: str = "image") -> Dataset:
    """A folder with a folder of images for each class, or with a table ``metadata`` of the files beside it.

    Args:
        folder: its path.
        column: the images' column; a table has it, or their names in ``file_name``, as the Hugging Face hub has it.

    Raises:
        InputError: the folder has neither folders with images nor such a table (``E-DATA``).
    """
    if tables := [file for suffix in FORMATS if (file := Path(folder, f"metadata{suffix}")).is_file()]:
        rows = read_table(str(tables[0]), column="file_name")
        is_named = "file_name" in rows.column_names and column not in rows.column_names
        return rows.rename_column("file_name", column) if is_named else rows
    files = files_by_class(folder, SUFFIXES, "images")
    return Dataset.from_dict(
        {
            column: [str(file) for found in files.values() for file in found],
            "label": [number for number, found in enumerate(files.values()) for _ in found],
        },
        features=Features({column: Image(), "label": ClassLabel(names=list(files))}),
    )


def read_table(
    file: str,
    *,
    column: str,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Dataset:
    """A file of rows; names of image files in it are relative to its folder, see `_paths`."""
    rows = read_file(file, header=header, delimiter=delimiter, encoding=encoding)
    dtype = str(getattr(rows.features.get(column), "dtype", None))
    if dtype not in _NAMES and not dtype.startswith(("int", "uint")):
        return rows
    names = [None if name is None else str(name) for name in rows[column]]
    paths = _paths(names, Path(file).resolve())
    if dtype not in _NAMES and not any(path is not None and Path(path).is_file() for path in paths):
        return rows
    return replace_column(rows, column, paths)


def _paths(names: Sequence[str | None], table: Path) -> list[str | None]:
    """The paths of image files by their names in a table, which are relative to its folder.

    A name's last part, perhaps without an ending, may also be of a file in a folder below: so is it where a table of
    numbers and labels comes with a folder of pictures, or names the folders of another machine. It is taken if it is
    the only file of that name, or the only one in a folder of the split that the table's own name tells, as
    ``train.csv`` and ``train_images``, and if no other name in the table ends in it.
    """
    folder, split = table.parent, split_in(table.stem)
    paths = {name: folder / name for name in names if name is not None}
    last = {name: _SEPARATOR.split(name)[-1] for name in paths}
    times = Counter(last.values())
    missing = {last[name]: name for name, path in paths.items() if times[last[name]] == 1 and not path.is_file()}
    below: dict[str, list[Path]] = {}
    for file in list_files(folder, SUFFIXES) if missing else ():
        for part in {file.name, file.stem} & set(missing):
            below.setdefault(missing[part], []).append(file)
    if split is not None:
        own = {name: [file for file in files if _is_of(split, file.parent, folder)] for name, files in below.items()}
        below = {name: own[name] or files for name, files in below.items()}
    found = {name: files[0] for name, files in below.items() if len(files) == 1}
    if found:
        folders = sorted({str(file.parent) for file in found.values()})
        logger.info("%d images are found by their names in %s", len(found), ", ".join(folders[:_SHOWN]))
    return [None if name is None else str(found.get(name, paths[name])) for name in names]


def _is_of(split: str, place: Path, folder: Path) -> bool:
    """Whether a folder below another one has a split's name, or lies in one that has."""
    return any(split_in(part) == split for part in place.relative_to(folder).parts)


def _undecoded(rows: Dataset, column: str, split: str) -> Dataset:
    """The rows with only their images, as bytes and paths.

    Raises:
        InputError: the column holds something else (``E-COLUMN``), or a row has no image (``E-IMAGE``).
    """
    feature = rows.features[column]
    known = isinstance(feature, Image) or getattr(feature, "dtype", None) in (*_NAMES, *_BYTES)
    if not known and not (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()):  # written by another tool
        raise InputError(
            "E-COLUMN",
            f"the {split} split's column {column!r} holds {feature}; data.columns.image takes images, their bytes, or "
            "names of files",
        )
    return rows.select_columns([column]).cast_column(column, Image(decode=False))


def _inspect(images: Images, *, decoded: bool) -> tuple[Counter[tuple[str, tuple[int, int]]], list[int]]:
    """The number of images of each mode and size; raises ``E-IMAGE`` at the first broken image.

    Args:
        images: a split.
        decoded: whether to decode images entirely; a truncated file has a good header.

    Returns:
        The counts, and digests of the bytes of images that were read entirely.
    """
    kinds: Counter[tuple[str, tuple[int, int]]] = Counter()
    contents = []
    task, hidden = f"reading the images of {images.origin.split}", not sys.stderr.isatty()
    for row in track(range(len(images)), task, console=get_console(), transient=True, disable=hidden):
        source = images.rows[row][images.column]
        image, where = images.open_source(row, source)
        kinds[image.mode, image.size] += 1
        with image:
            if decoded:
                convert(image, images.mode, where)
        if source["bytes"] is not None:
            contents.append(hash(source["bytes"]))
        elif decoded:  # the file has just been read
            contents.append(hash(Path(source["path"]).read_bytes()))
    return kinds, contents


def _described(kinds: Counter[tuple[str, tuple[int, int]]]) -> str:
    sides = sorted({size for _, size in kinds}, key=lambda size: size[0] * size[1])
    of = f"{sides[0][0]} x {sides[0][1]}"
    if len(sides) > 1:
        of += f" to {sides[-1][0]} x {sides[-1][1]}"
    other: Counter[str] = Counter()
    for (mode, _), count in kinds.items():
        other[mode] += count
    modes = ", ".join(f"{count} of mode {mode}" for mode, count in other.items() if mode != "RGB")
    return f"{kinds.total()} images of {of} pixels{f', {modes}' if modes else ''}"


def _short(images: Images, row: int) -> str:
    """A row's file with its folder, or its number."""
    path = images.rows[row][images.column]["path"]
    return "/".join(Path(path).parts[-2:]) if path else f"{images.origin.split} row {row}"
