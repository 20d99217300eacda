"""Image files: finding them, and converting them to RGB or grey from any mode."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from loralight.data import list_files
from loralight.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SMALL = 96  # pixels
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of an image, by the number of channels that a model takes."""


def open_image(source: Any, where: str) -> Image.Image:
    """The image, with only its header read yet.

    Args:
        source: an image, a path, bytes, or a mapping with ``bytes`` or ``path`` as in Hugging Face's data sets.
        where: the image's place, for the message.

    Raises:
        InputError: there is no image (``E-IMAGE``), or one of too many pixels (``E-IMAGE-SIZE``).
    """
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if not isinstance(source, str | Path | bytes | Image.Image):
        raise InputError("E-IMAGE", f"{where}: {source!r} is no image; give a file's path or its bytes")
    try:
        if isinstance(source, Image.Image):
            return source.copy()
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(error, where) from error


def convert(image: Image.Image, mode: str, where: str) -> Image.Image:
    """Decode an image and turn it upright; transparency is dropped, 16 bits become 8.

    Args:
        image: as `open_image` returns it.
        mode: ``RGB`` or ``L`` (grey).
        where: the image's place, for the message.

    Raises:
        InputError: the file is broken (``E-IMAGE``).
    """
    try:
        with image:  # else its file stays open if broken, or if it has more pictures
            image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # Pillow would clip at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
        if image.mode == "P":  # its transparency may be one colour or a table
            image = image.convert("RGBA")
        return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of broken files
        raise _unreadable(error, where) from error


def small_jpeg(image: Image.Image) -> bytes:
    """An image as a JPEG of at most 96 pixels a side, 2 to 4 kB."""
    small, written = image.copy(), BytesIO()
    small.thumbnail((_SMALL, _SMALL))
    small.save(written, "JPEG", quality=75)
    return written.getvalue()


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and the folders inside it, sorted, without hidden files."""
    return list_files(folder, SUFFIXES)


def _unreadable(error: Exception, where: str) -> InputError:
    if isinstance(error, Image.DecompressionBombError):
        return InputError("E-IMAGE-SIZE", f"{where}: make it smaller: {error}")
    reason = "not an image, or of an unknown kind" if "cannot identify" in str(error) else str(error)
    return InputError("E-IMAGE", f"{where}: cannot be read: {reason}")
