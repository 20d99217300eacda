"""Encodings of text files, and the likely encoding of a file that cannot be read in the given one."""

import codecs
from pathlib import Path

from loralight.data.compressed import BROKEN, open_bytes
from loralight.errors import InputError

_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def check_encoding(encoding: str | None) -> str | None:
    """The encoding; None for UTF-8, which may begin with a byte order mark.

    Raises:
        InputError: Python has no such text encoding (``E-ENCODING``).
    """
    try:
        name = codecs.lookup(encoding or "utf-8").name
        "".encode(name)  # fails for codecs that are not for text, such as base64
    except LookupError as error:
        raise InputError(
            "E-ENCODING",
            f"data.encoding is {encoding!r}; give one that Python knows: utf-8, latin-1, cp1252, utf-16, ...",
        ) from error
    return None if name in ("utf-8", "utf-8-sig") else encoding


def read_text_file(file: str, encoding: str | None = None) -> str:
    """The content of a text file, without a byte order mark.

    Args:
        file: its path.
        encoding: UTF-8 if None.

    Raises:
        InputError: the file cannot be read as text in this encoding (``E-DATA``).
    """
    try:
        return Path(file).read_text(encoding=encoding or "utf-8-sig")
    except OSError as error:
        raise InputError("E-DATA", f"{file}: cannot be read as text: {error}") from error
    except UnicodeError as error:
        raise not_so_encoded(file, encoding) from error


def not_so_encoded(file: str, encoding: str | None) -> InputError:
    """The error for a file in another encoding; it names the likely encoding, judged by the file's bytes."""
    with open_bytes(file) as opened:
        likely, why = _likely(opened.read())
    return InputError(
        "E-DATA",
        f"{file}: cannot be read as text in {encoding or 'UTF-8'}; likely it is in {likely} ({why}). Set "
        f"data.encoding={likely}, or save it as UTF-8: iconv -f {likely} -t utf-8",
    )


def check_text(file: str, encoding: str | None) -> None:
    """Raise ``E-DATA`` if a file is not text in ``encoding``; if that is None, also if zero bytes show UTF-16.

    A compressed file that is damaged is the same error.
    """
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
    with open_bytes(file) as opened:
        try:
            while part := opened.read(1 << 20):
                decoder.decode(part)
                if encoding is None and 4 * part.count(0) > len(part):
                    raise not_so_encoded(file, encoding)
            decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise not_so_encoded(file, encoding) from error
        except BROKEN as error:
            raise InputError("E-DATA", f"{file}: cannot be read: {error}") from error


def _likely(data: bytes) -> tuple[str, str]:
    if found := next((name for mark, name in _MARKS.items() if data.startswith(mark)), None):
        return found, "its first bytes say so"
    if b"\0" in data:
        odd, even = data[1::2].count(0), data[::2].count(0)
        return ("utf-16-le" if odd > even else "utf-16-be"), "every other byte is 0"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if any(0x80 <= byte < 0xA0 for byte in data):
            return "cp1252", f"byte {data[error.start]:#x} at {error.start}; Western European, of Windows"
        return "latin-1", f"byte {data[error.start]:#x} at {error.start}; Western European"
    return "utf-8", "its bytes are sound UTF-8"
