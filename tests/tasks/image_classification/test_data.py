"""Images and labels become batches, wherever they lie; what cannot is one error that names split, row and file."""

import csv
import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from loralight.errors import InputError
from loralight.tasks.image_classification import ImageClassificationData
from loralight.tasks.image_classification import data as module
from loralight.training.answers_file import MOST_OF_THUMBNAIL

COLUMNS = {"image": "image", "label": "label"}


def make(checkpoint: str, **arguments: Any) -> ImageClassificationData:
    data = ImageClassificationData(
        checkpoint=checkpoint, **{"columns": COLUMNS, "batch_size": 5, "length_grouped": False, **arguments}
    )
    data.setup()
    return data


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def bytes_of(colour: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(labels: list[Any], **columns: Any) -> Dataset:
    images = [{"bytes": bytes_of(row), "path": None} for row in range(len(labels))]
    return Dataset.from_dict({"image": images, "label": labels, **columns})


def test_images_of_another_size_are_the_same_rows_and_other_images_are_not(
    tiny_resnet: str, image_folders: Path, tmp_path: Path
) -> None:
    here = make(tiny_resnet, path=str(image_folders)).identity()
    small = make(tiny_resnet, path=str(image_folders), image_size=16).identity()
    assert small["digests"]["validation"] != here["digests"]["validation"]
    assert small["asked"] == here["asked"]
    folder = copied(image_folders, tmp_path)
    moved = make(tiny_resnet, path=str(folder)).identity()
    assert moved["asked"] == here["asked"]
    for file in sorted((folder / "train").rglob("*.png")):
        file.write_bytes(bytes_of(7))
    assert make(tiny_resnet, path=str(folder)).identity()["asked"]["train"] != here["asked"]["train"]


def test_a_batch_holds_images_as_the_model_wants_them_and_class_numbers(tiny_resnet: str, image_folders: Path) -> None:
    data = make(tiny_resnet, path=str(image_folders), eval_batch_size=12)
    (batch,) = data.val_dataloader()
    assert batch["images"].shape == (12, 3, 32, 32)
    assert batch["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = batch["images"] * torch.tensor([0.3, 0.2, 0.25]).view(3, 1, 1) + torch.tensor([0.4, 0.5, 0.6]).view(
        3, 1, 1
    )
    strongest = pixels.mean((2, 3)).argmax(1)
    assert strongest.tolist() == [2] * 4 + [1] * 4 + [0] * 4  # blue, green, red are in alphabetical order
    assert data.names == ["blue", "green", "red"]


def placed(how: str, images: Path, folder: Path) -> dict[str, Any]:
    """The same images in another form; returns the arguments that name them."""
    splits = {split: sorted((images / split).rglob("*.*")) for split in ("train", "validation", "test")}
    if how == "a folder of splits":
        return {"path": str(images)}
    if how == "a folder each":
        return {split: str(images / split) for split in splits}
    if how == "folders of other names":
        for split, name in {"train": "training", "validation": "val", "test": "test"}.items():
            shutil.copytree(images / split, folder / name)
        return {"path": str(folder)}
    for split, files in splits.items():
        if how == "tables of names beside them":
            copies = [folder / f"{split}-{file.parent.name}-{file.name}" for file in files]
            rows = [(copy.name, file.parent.name) for copy, file in zip(copies, files, strict=True)]
            for copy, file in zip(copies, files, strict=True):
                shutil.copy(file, copy)
            with (folder / f"{split}.csv").open("w", newline="") as opened:
                csv.writer(opened).writerows([("image", "label"), *rows])
        elif how == "tables of absolute names":
            lines = [json.dumps({"image": str(file), "label": file.parent.name}) for file in files]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        else:
            names = ["blue", "green", "red"]
            feature = ImageFeature() if how == "tables of images" else Value("binary")
            content = {
                "image": [file.read_bytes() for file in files],
                "label": [names.index(file.parent.name) for file in files],
            }
            features = Features({"image": feature, "label": ClassLabel(names=names)})
            Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}.parquet")
    return {"path": str(folder)}


@pytest.mark.parametrize(
    "how",
    [
        "a folder each",
        "folders of other names",
        "tables of names beside them",
        "tables of absolute names",
        "tables of images",
        "tables of bytes",
    ],
)
def test_images_are_the_same_wherever_they_lie(
    tiny_resnet: str, image_folders: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # names are found from where the table is
    wanted, found = (make(tiny_resnet, **placed(form, image_folders, tmp_path)) for form in ("a folder of splits", how))
    assert found.names == wanted.names
    for split in ("train", "validation", "test"):
        assert list(found.splits[split].labels) == list(wanted.splits[split].labels)
        for row in range(len(wanted.splits[split])):
            assert torch.equal(found.splits[split][row]["images"], wanted.splits[split][row]["images"])


def test_class_folders_alone_are_split_into_train_and_validation(tiny_resnet: str, image_folders: Path) -> None:
    data = make(tiny_resnet, path=str(image_folders / "train"), validation_fraction=0.25)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 18, "validation": 6}
    files = [
        data.splits[split].rows[row]["image"]["path"] for split in data.splits for row in range(len(data.splits[split]))
    ]
    assert len(set(files)) == 24


def test_a_table_beside_a_folder_of_images_is_read(tiny_resnet: str, image_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folders / "train", tmp_path / "pictures")
    names = sorted(file.relative_to(tmp_path) for file in (tmp_path / "pictures").rglob("*.*"))
    rows = [("image", "label"), *((str(name), f"{name.parent.name}ish") for name in names)]
    with (tmp_path / "labels.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    data = make(tiny_resnet, path=str(tmp_path))
    assert data.names == ["blueish", "greenish", "redish"]
    assert sum(map(len, data.splits.values())) == len(names)


def test_names_without_folder_and_ending_are_found_below_a_table(
    tiny_resnet: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As competitions give a table of numbers and labels beside a folder of pictures."""
    (tmp_path / "train").mkdir()
    for number in range(20):
        (tmp_path / "train" / f"{number}.png").write_bytes(bytes_of(10 * number))
    (tmp_path / "18").write_bytes(bytes_of(250))  # a name that is right as it stands
    columns, names = {**COLUMNS, "image": "id"}, [*range(18), "18", "19.png"]
    lines = [f"{name},{'light' if place >= 10 else 'dark'}" for place, name in enumerate(names)]
    for given in (lines, lines[:18]):  # of numbers alone, the column is one of numbers
        (tmp_path / "labels.csv").write_text("\n".join(["id,label", *given]))
        with caplog.at_level("INFO"):
            data = make(tiny_resnet, train=str(tmp_path / "labels.csv"), columns=columns, validation_fraction=0.2)
        shown = sorted(data.shown(split, row) for split in data.splits for row in range(len(data.splits[split])))
        beside = [f"{tmp_path.name}/18"] if len(given) == 20 else []
        found = [f"train/{number}.png" for number in range(20) if number < 18 or (number == 19 and beside)]
        assert shown == sorted([*found, *beside])
        assert f"{len(found)} images are found by their names in {tmp_path / 'train'}" in caplog.text
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "7.png").write_bytes(bytes_of(0))
    with pytest.raises(InputError, match=r"^E-IMAGE: .*labels\.csv: train row 7, column 'id' .*No such file"):
        make(tiny_resnet, train=str(tmp_path / "labels.csv"), columns=columns, validation_fraction=0.2)


def test_pictures_of_one_name_are_those_in_the_folder_of_the_table_s_split(tiny_resnet: str, tmp_path: Path) -> None:
    for split, colour in (("train", 40), ("test", 80)):
        (tmp_path / f"{split}_images" / "all").mkdir(parents=True)
        for number in range(6):
            (tmp_path / f"{split}_images" / "all" / f"{number}.png").write_bytes(bytes_of(colour + number))
        lines = ["image,label", *(f"{number},{number % 2}" for number in range(6))]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    data = make(tiny_resnet, path=str(tmp_path), validation_fraction=0.5)
    for split, colour in (("train", 40), ("validation", 40), ("test", 80)):
        for row in range(len(data.splits[split])):
            image, _ = data.splits[split].opened(row)
            number = int(Path(data.splits[split].rows[row]["image"]["path"]).stem)
            assert image.getpixel((0, 0)) == (colour + number, 0, 0)


@pytest.mark.parametrize("folder", ["/data/upload/1/", "C:\\photos\\", "elsewhere/"])
def test_names_with_folders_of_another_machine_are_found_by_their_last_part(
    tiny_resnet: str, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "upload").mkdir()
    for number in range(8):
        (tmp_path / "upload" / f"{number}.png").write_bytes(bytes_of(10 * number))
    lines = ["image,label", *(f"{folder}{number}.png,{number % 2}" for number in range(8))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = make(tiny_resnet, train=str(tmp_path / "labels.csv"), validation_fraction=0.5)
    shown = sorted(data.shown(split, row) for split in data.splits for row in range(len(data.splits[split])))
    assert shown == [f"upload/{number}.png" for number in range(8)]
    lines[1:3] = ["cats/0.png,0", "dogs/0.png,1"]  # which of the two the file is cannot be known
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"^E-IMAGE: .*labels\.csv: train row \d, .*(cats|dogs)/0\.png.*No such file"):
        make(tiny_resnet, train=str(tmp_path / "labels.csv"), validation_fraction=0.5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("column", ["image", "file_name"])
def test_a_folder_may_have_a_table_of_its_images(tiny_resnet: str, tmp_path: Path, suffix: str, column: str) -> None:
    """As the Hugging Face hub has them: https://huggingface.co/docs/datasets/image_dataset."""
    for split, colour in (("train", 10), ("test", 90)):
        (tmp_path / split).mkdir()
        for number in range(6):
            (tmp_path / split / f"{number}.png").write_bytes(bytes_of(colour + number))
        rows = Dataset.from_dict({"file_name": [f"{number}.png" for number in range(6)], "label": ["a", "b"] * 3})
        file = str(tmp_path / split / f"metadata{suffix}")
        rows.to_csv(file) if suffix == ".csv" else rows.to_json(file)
    data = make(tiny_resnet, path=str(tmp_path), columns={**COLUMNS, "image": column}, validation_fraction=0.5)
    assert data.names == ["a", "b"]
    for split, colour in (("train", 10), ("validation", 10), ("test", 90)):
        for row in range(len(data.splits[split])):
            image, _ = data.splits[split].opened(row)
            number = int(data.shown(split, row).removesuffix(".png").rpartition("/")[2])
            assert (image.getpixel((0, 0)), data.splits[split].labels[row]) == ((colour + number, 0, 0), number % 2)


def test_a_test_folder_without_folders_of_labels_is_left_out_and_said_so(
    tiny_resnet: str, image_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(image_folders, tmp_path)
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    (folder / "test" / "1.png").write_bytes(bytes_of(1))
    with caplog.at_level("INFO"):
        assert set(make(tiny_resnet, path=str(folder)).splits) == {"train", "validation"}
    assert "test: left out, it has no labels" in caplog.text
    with pytest.raises(InputError, match=r"^E-DATA: .*test: holds no folders with images"):
        make(tiny_resnet, path=str(folder), test="test")


def test_files_of_other_kinds_are_counted(
    tiny_resnet: str, image_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(image_folders, tmp_path)
    for name in ("a.heic", "b.HEIC", "c.txt", "Thumbs.db", ".DS_Store"):
        (folder / "train" / "red" / name).write_bytes(b"")
    with caplog.at_level("INFO"):
        make(tiny_resnet, path=str(folder))
    assert "3 files are no images and are left out: 1 of .heic, 1 of .HEIC, 1 of .txt" in caplog.text


def test_columns_may_have_any_names(tiny_resnet: str, tmp_path: Path) -> None:
    rows = table([0, 1] * 4).rename_columns({"image": "Foto", "label": "was es ist"})
    rows.to_parquet(tmp_path / "train.parquet")
    data = make(
        tiny_resnet, path=str(tmp_path), columns={"image": "Foto", "label": "was es ist"}, validation_fraction=0.5
    )
    assert data.names == ["0", "1"]
    assert data.model_arguments() == {
        "labels": ["0", "1"],
        "label_counts": [data.splits["train"].labels.count(number) for number in (0, 1)],
        "image_column": "Foto",
    }


def test_labels_given_by_name_are_in_the_order_given(tiny_resnet: str, image_folders: Path) -> None:
    data = make(tiny_resnet, path=str(image_folders), labels=["red", "black", "green", "blue"])
    assert set(data.splits["test"].labels) == {0, 2, 3}
    assert data.baseline("test").keys() == {"accuracy", "f1", "ece"}


def test_a_test_split_with_hidden_labels_is_left_out_and_said_so(tiny_resnet: str, tmp_path: Path) -> None:
    table([0, 1, 0, 1]).to_parquet(tmp_path / "train.parquet")
    table([-1, -1]).to_parquet(tmp_path / "test.parquet")
    data = make(tiny_resnet, path=str(tmp_path))
    assert set(data.splits) == {"train", "validation"}
    assert any("labels are hidden" in line for line in data.report())


def test_the_report_tells_sizes_modes_and_labels(tiny_resnet: str, image_folders: Path, tmp_path: Path) -> None:
    folder = copied(image_folders, tmp_path)
    Image.new("L", (300, 200)).save(folder / "train" / "red" / "grey.png")
    Image.new("CMYK", (5, 4)).save(folder / "train" / "red" / "cmyk.jpg")
    shutil.copy(folder / "train/blue/0.jpg", folder / "test/blue/same.jpg")
    report = make(tiny_resnet, path=str(folder)).report()
    assert [line for line in report if line.startswith("caution: ")] == [
        "caution: 1 of 13 rows of test are in train too, byte for byte: take them out of one"
    ]
    assert "train: 26 images of 5 x 4 to 300 x 200 pixels, 1 of mode CMYK, 1 of mode L" in report
    assert "labels in train: blue 8, green 8, red 10" in report
    assert any("colour images of 32 x 32 pixels (bilinear, 90.0% of the side in evaluation)" in line for line in report)


def test_examples_are_of_rows_that_training_does_not_see_with_their_labels(
    tiny_resnet: str, image_folders: Path
) -> None:
    examples = make(tiny_resnet, path=str(image_folders)).examples(3)
    assert [truth for _, truth in examples] == ["blue", "green", "red"]
    assert [given["file"] for given, _ in examples] == ["blue/0.jpg", "green/0.jpg", "red/0.jpg"]


def test_a_thumbnail_is_a_small_jpeg_of_the_whole_image(tiny_resnet: str, tmp_path: Path) -> None:
    for split, colour in (("train", "red"), ("validation", "blue")):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (400, 200), colour).save(tmp_path / split / label / f"{number}.png")
    small = make(tiny_resnet, path=str(tmp_path)).thumbnail("validation", 0)
    assert small is not None and len(small) <= MOST_OF_THUMBNAIL
    shown = Image.open(BytesIO(small))
    assert (shown.format, shown.size) == ("JPEG", (96, 48))
    assert shown.getpixel((50, 20)) == pytest.approx((0, 0, 255), abs=3)


def test_augmented_images_are_a_function_of_seed_epoch_and_row(tiny_resnet: str, image_folders: Path) -> None:
    settings = {"path": str(image_folders), "auto_augment": "rand-m9-n2", "random_erasing": 0.5}
    rows = make(tiny_resnet, **settings).splits["train"]
    again = make(tiny_resnet, **settings).splits["train"]
    torch.rand(7)
    assert torch.equal(rows[(3, 5)]["images"], again[(3, 5)]["images"])
    others = [rows[(4, 5)], rows[(3, 6)], make(tiny_resnet, **settings, seed=1).splits["train"][(3, 5)]]
    assert not any(torch.equal(rows[(3, 5)]["images"], other["images"]) for other in others)


def test_only_training_images_are_changed_at_random(tiny_resnet: str, image_folders: Path) -> None:
    data = make(tiny_resnet, path=str(image_folders), auto_augment="rand-m9-n2")
    plain = make(tiny_resnet, path=str(image_folders))
    assert torch.equal(data.splits["validation"][3]["images"], data.splits["validation"][(9, 3)]["images"])
    assert torch.equal(data.splits["validation"][3]["images"], plain.splits["validation"][3]["images"])


def batches(data: ImageClassificationData, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def test_a_resumed_epoch_goes_on_with_the_very_same_images(tiny_resnet: str, image_folders: Path) -> None:
    whole = batches(make(tiny_resnet, path=str(image_folders), auto_augment="rand-m9-n2"), 2)
    other = make(tiny_resnet, path=str(image_folders), auto_augment="rand-m9-n2")
    other.go_on_at(2, [(5, 3)])
    rest = batches(other, 2)
    assert len(rest) == len(whole) - 3
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(rest, whole[3:], strict=True))
    first = batches(make(tiny_resnet, path=str(image_folders)), 0)
    assert not any(torch.equal(a["images"], b["images"]) for a, b in zip(first, whole, strict=True))


def broken_file(content: bytes, name: str = "red/9.jpg") -> Callable[[Path], dict[str, Any]]:
    def fault(folder: Path) -> dict[str, Any]:
        (folder / "validation" / name).write_bytes(content)
        return {}

    return fault


def other_folder(name: str) -> Callable[[Path], dict[str, Any]]:
    def fault(folder: Path) -> dict[str, Any]:
        (folder / "validation" / "red").rename(folder / "validation" / name)
        return {}

    return fault


def in_table(rows: Callable[[], Dataset], **arguments: Any) -> Callable[[Path], dict[str, Any]]:
    def fault(folder: Path) -> dict[str, Any]:
        rows().to_parquet(folder / "rows.parquet")
        return {
            "path": None,
            "train": str(folder / "rows.parquet"),
            "validation": str(folder / "rows.parquet"),
            **arguments,
        }

    return fault


def jpeg(size: int = 200) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def one_folder(folder: Path) -> dict[str, Any]:
    for name in ("blue", "green"):
        shutil.rmtree(folder / "train" / name)
    return {}


def without_images(folder: Path) -> dict[str, Any]:
    (folder / "empty" / "a").mkdir(parents=True)
    (folder / "empty" / "a" / "notes.txt").write_text("nothing here")
    return {"path": str(folder / "empty")}


def names_of_nothing(folder: Path) -> dict[str, Any]:
    (folder / "rows.csv").write_text("image,label\ngone.png,a\ngone.png,b\n")
    return {"path": None, "train": str(folder / "rows.csv"), "validation": str(folder / "rows.csv")}


FAULTS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a file that is no image": (
        broken_file(b"<html></html>"),
        r"E-IMAGE: .+: validation row 12, column 'image' \(.*red/9\.jpg\): cannot be read: not an image",
    ),
    "an empty file": (broken_file(b""), r"E-IMAGE: .+: validation row 12, column 'image' \(.*red/9\.jpg\)"),
    "a truncated JPEG": (
        broken_file(jpeg()[:-500], "blue/0.jpg"),
        r"E-IMAGE: .+: validation row 0, column 'image' \(.*blue/0\.jpg\): cannot be read: .*truncated",
    ),
    "a class that training has not": (
        other_folder("rad"),
        r"E-LABEL-RANGE: .+: validation row 8: label 'rad' is not one of 'blue', 'green', 'red'\. Did you mean 'red'\?",
    ),
    "one class only": (one_folder, r"E-LABELS: the only label in train is \['red'\]"),
    "no images": (without_images, "E-DATA: .*empty: holds no folders with images"),
    "no such folder": (lambda folder: {"path": str(folder / "nix")}, "E-DATA: data.path=.*there is no such folder"),
    "names of files that are not there": (
        names_of_nothing,
        r"E-IMAGE: .+: train row 0, column 'image' \(.*gone\.png\): cannot be read: .*No such file",
    ),
    "no image in a row": (
        in_table(lambda: Dataset.from_dict({"image": [bytes_of(1), None, bytes_of(2)], "label": [0, 1, 0]})),
        "E-IMAGE: .+: train row 1, column 'image': None is no image",
    ),
    "numbers for images": (
        in_table(lambda: Dataset.from_dict({"image": [1, 2, 3], "label": [0, 1, 0]})),
        "E-COLUMN: the train split's column 'image' holds Value.*data.columns.image takes images",
    ),
    "no such column": (
        in_table(lambda: table([0, 1]).rename_column("image", "img")),
        r"E-COLUMN: the train split has no column 'image'; it has 'label', 'img'|"
        r"E-COLUMN: the train split has no column 'image'; it has 'img', 'label'\. Did you mean 'img'\?",
    ),
    "a label is missing": (
        in_table(lambda: table(["a", None, "b"])),
        "E-LABEL-RANGE: .+: train row 1, column 'label': None is no label",
    ),
    "several labels in one text": (
        in_table(lambda: table(["a", "b", "a,b"])),
        "E-LABELS: column 'label': 'a,b' .*looks like several labels, 'a' and 'b', .*An image has one label",
    ),
    "scores": (in_table(lambda: table([0.1, 0.25, 3.7])), "E-LABELS: column 'label' holds 3 different numbers"),
    "a mark for a missing label": (
        in_table(lambda: table([0, 1, -1])),
        "E-LABEL-RANGE: .+: train row 2, column 'label': -1 is no label",
    ),
    "a number for a column's name": (
        lambda _: {"columns": {"image": 0, "label": 1}},
        r"E-COLUMN: data\.columns\.image=0: a number is the place",
    ),
    "several labels a row": (in_table(lambda: table([[0], [0, 1]])), "E-LABELS: column 'label' holds lists"),
    "a label twice": (in_table(lambda: table([0, 1]), labels=["a", "a"]), "E-LABELS: data.labels names 'a' twice"),
    "an image size of zero": (lambda _: {"image_size": 0}, "E-IMAGE-SIZE: model.image_size=0"),
    "no such policy": (lambda _: {"auto_augment": "sideways"}, "E-AUGMENT: data.auto_augment=sideways"),
    "no such model": (lambda _: {"checkpoint": "./nix"}, "E-MODEL: model.checkpoint=./nix: there is no such folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_learnt_from_is_one_clear_error(
    tiny_resnet: str, image_folders: Path, tmp_path: Path, fault: str
) -> None:
    folder = copied(image_folders, tmp_path)
    spoil, message = FAULTS[fault]
    with pytest.raises(InputError, match=f"^({message})"):
        make(**{"checkpoint": tiny_resnet, "path": str(folder), **spoil(folder)})


def test_of_very_many_images_only_the_headers_are_read_before_training(
    tiny_resnet: str, image_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(image_folders, tmp_path)
    (folder / "train" / "red" / "8.jpg").write_bytes(jpeg()[:-500])
    monkeypatch.setattr(module, "_DECODED", 40)
    data = make(tiny_resnet, path=str(folder))
    with pytest.raises(InputError, match=r"^E-IMAGE: .+: train row 24, column 'image' \(.*red/8\.jpg\): .*truncated"):
        data.splits["train"][24]
    (folder / "train" / "red" / "9.jpg").write_bytes(b"no header")
    with pytest.raises(InputError, match=r"^E-IMAGE: .+: train row 25, column 'image' \(.*red/9\.jpg\)"):
        make(tiny_resnet, path=str(folder))


def test_satellite_pictures_are_read_with_their_names(tiny_resnet: str, shared_data: Path) -> None:
    data = make(tiny_resnet, path=str(shared_data / "eurosat_rgb"), limit_rows=20)
    assert data.names == json.loads((shared_data / "eurosat_rgb" / "labels.json").read_text())
    assert data.baseline("test")["accuracy"] == pytest.approx(0.1)
