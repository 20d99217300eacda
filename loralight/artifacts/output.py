"""The file or folder that a command writes."""

from pathlib import Path

from loralight.errors import InputError


def refuse_existing(output: str | Path | None) -> None:
    """Raise ``E-OUTPUT`` if the file or folder exists already, so that nothing is overwritten."""
    if output and Path(output).exists():
        raise InputError("E-OUTPUT", f"output={output}: it exists, and nothing is overwritten; choose another name")
