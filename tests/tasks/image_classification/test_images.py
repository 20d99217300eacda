"""Whatever an image file is, it becomes plain RGB or grey; what is none is one error that names its place."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loralight.errors import InputError
from loralight.tasks.image_classification.images import convert, list_images, open_image

PIXELS = (np.random.default_rng(0).integers(0, 5, (6, 9, 3)) * 60).astype(np.uint8)  # 125 colours: a palette holds them
RGB = Image.fromarray(PIXELS)
GREY = PIXELS[..., 0]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(source: Any, mode: str = "RGB") -> np.ndarray[Any, Any]:
    return np.asarray(convert(open_image(source, "here"), mode, "here"))


COLOURED = {
    "PNG": encoded(RGB, "PNG"),
    "BMP": encoded(RGB, "BMP"),
    "WebP": encoded(RGB, "WEBP", lossless=True),
    "RGBA": encoded(RGB.convert("RGBA"), "PNG"),
    "CMYK": encoded(RGB.convert("CMYK"), "TIFF"),
    "palette": encoded(RGB.quantize(256), "PNG"),
    "palette with one transparent colour": encoded(RGB.quantize(256), "PNG", transparency=3),
    "palette with transparent colours": encoded(RGB.quantize(256), "PNG", transparency=bytes(range(256))),
    "moving": encoded(RGB.quantize(256), "GIF", save_all=True, append_images=[RGB.rotate(180).quantize(256)]),
}
GREYS = {
    "8 bits": encoded(Image.fromarray(GREY), "PNG"),
    "with transparency": encoded(Image.fromarray(GREY).convert("LA"), "PNG"),
    "16 bits": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "16 bits in a TIFF": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "32 bits": encoded(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_any_kind_of_colour_becomes_rgb(kind: str) -> None:
    assert np.array_equal(read(COLOURED[kind]), PIXELS)


@pytest.mark.parametrize("kind", GREYS)
def test_any_kind_of_grey_becomes_rgb_of_eight_bits(kind: str) -> None:
    assert np.array_equal(read(GREYS[kind]), np.repeat(GREY[..., None], 3, -1))
    assert np.array_equal(read(GREYS[kind], "L"), GREY)


def test_colours_become_grey_for_a_model_of_one_channel() -> None:
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(read(COLOURED["PNG"], "L") - luma).max() <= 1


def test_a_photograph_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise by 90 degrees
    assert np.array_equal(read(encoded(RGB, "PNG", exif=exif)), np.rot90(PIXELS, -1))


def test_images_come_as_paths_bytes_records_or_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(COLOURED["PNG"])
    sources: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), COLOURED["PNG"], RGB]
    sources += [{"bytes": COLOURED["PNG"], "path": "x.png"}, {"bytes": None, "path": str(tmp_path / "a.png")}]
    assert all(np.array_equal(read(source), PIXELS) for source in sources)


JPEG, PNG = encoded(RGB, "JPEG"), COLOURED["PNG"]
BROKEN: dict[str, tuple[Any, str]] = {
    "nothing in it": (b"", "not an image"),
    "a web page": (b"<!doctype html><html></html>", "not an image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], ""),
    "a JPEG that misses its end": (encoded(RGB.resize((200, 200)), "JPEG")[:-300], "truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], ""),
    "a PNG with a wrong byte": (PNG[:50] + bytes([PNG[50] ^ 255]) + PNG[51:], ""),
    "missing": ("/no/such/file.jpg", "No such file"),
    "a folder": ("/", "Is a directory"),
    "a number": (5, "5 is no image"),
    "None": (None, "None is no image"),
    "a record without either": ({"bytes": None, "path": None}, "None is no image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_image_is_an_error_that_says_where(kind: str) -> None:
    source, reason = BROKEN[kind]
    with pytest.raises(InputError, match=rf"^E-IMAGE: here: .*{reason}"):
        read(source)


def test_an_image_of_too_many_pixels_is_an_error_that_says_where() -> None:
    with pytest.raises(InputError, match=r"^E-IMAGE-SIZE: here: make it smaller: .*exceeds limit"):
        read(encoded(Image.new("1", (20_000, 10_000)), "PNG"))


def test_colours_that_cannot_be_converted_are_an_error_that_says_where() -> None:
    with pytest.raises(InputError, match=r"^E-IMAGE: here: .*conversion from LAB"):
        read(encoded(RGB.convert("LAB"), "TIFF"), "L")


def test_images_are_listed_in_order_from_all_folders_inside_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/c/d.webp", "a/notes.txt", ".cache/e.png", "a/._z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["a/c/d.webp", "a/z.jpg", "b.PNG"]
