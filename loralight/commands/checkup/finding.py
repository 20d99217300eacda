"""What a check looks at, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loralight.commands.checkup.pair import Pair

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What the checks look at.

    Args:
        environment: the variables of the process.
        runs: the folder of runs; it need not exist.
        pair: the two processes with torch.
    """

    environment: Mapping[str, str]
    runs: Path
    pair: Pair


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Args:
        told: what is there, in a line.
        wrong: what is wrong with it; empty if nothing is.
        remedy: the line that changes it.
    """

    told: str
    wrong: str = ""
    remedy: str = ""


def gib(size: float) -> str:
    """Bytes, in words."""
    return f"{size / GIB:.1f} GiB"


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    whole = folder.expanduser().absolute()
    return next(path for path in (whole, *whole.parents) if path.exists())
