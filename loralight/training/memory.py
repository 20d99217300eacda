"""Memory: how much is available, how much this process uses, and how amounts are written."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from loralight.errors import InputError

_UNITS = ("", "k", "m", "g", "t")
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def parse_memory(given: object) -> int:
    """Bytes of an amount such as ``8GB``, ``512MiB`` or a plain number.

    Raises:
        InputError: ``given`` is not an amount of memory (``E-MEMORY``).
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(given).strip().lower())
    if isinstance(given, bool) or not found or float(found[1]) == 0:
        raise InputError("E-MEMORY", f"memory={given}: give an amount such as 8GB, 512MiB, or a number of bytes")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS.index(found[2]))


def at_hand(device: torch.device) -> int:
    """Bytes that training on a device may take; on the CPU, those that this process uses already are included.

    Raises:
        InputError: this machine does not say how much is free (``E-MEMORY``).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    if device.type != "cpu" or free is None:
        raise InputError(
            "E-MEMORY", f"how much memory {device.type} has free is not known here; give it, such as memory=8GB"
        )
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()).isdigit():
        free = min(free, int(limit) - int(_USED.read_text()))
    return free + in_use()


def in_use() -> int:
    """Bytes that are resident in this process."""
    resident = _kilobytes("/proc/self/status", "VmRSS")
    return peak_memory() if resident is None else resident


def _kilobytes(file: str, field: str) -> int | None:
    if not Path(file).is_file():
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", Path(file).read_text())
    return int(found[1]) * 1024 if found else None


_peak_before = 0  # the peak before the system's own was reset


@contextmanager
def uncounted() -> Iterator[None]:
    """A context whose memory `peak_memory` leaves out, where a peak can be reset: on a GPU, and on Linux."""
    global _peak_before
    _peak_before = peak_memory()
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes in use so far: allocated on the GPU if there is one, else resident in this process."""
    return max(_peak_before, _peak_of_system())


def _peak_of_system() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
