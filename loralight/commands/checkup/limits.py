"""Cores and memory that this process may use: the machine's, and the limits of its control groups (cgroups)."""

import os
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path

from loralight.commands.checkup.finding import GIB, Finding, Machine, gib

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LITTLE = 2**27  # bytes of shared memory; a container has half of it unless told otherwise


def cores(machine: Machine) -> Finding:
    """The cores, and those that this process may use."""
    whole, usable = os.cpu_count() or 1, num_cores()
    return Finding(f"{whole}" if usable == whole else f"{usable} of {whole}, as the control group or a mask allows")


def memory(machine: Machine) -> Finding:
    """The memory that is free for a run."""
    free, whole = free_memory()
    if whole is None or free is None:
        return Finding("not known on this system")
    told = f"{gib(free)} of {gib(whole)} free"
    if free >= GIB:
        return Finding(told)
    return Finding(told, "a run needs a gibibyte for itself", "end other programs, or give the job more (--mem=)")


def shared_memory(machine: Machine) -> Finding:
    """The memory through which processes that read ahead pass batches on."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("no /dev/shm on this system")
    found = os.statvfs(place)
    size = found.f_blocks * found.f_frsize
    if size >= _LITTLE:
        return Finding(gib(size))
    wrong = "batches of images from processes that read ahead do not fit"
    return Finding(gib(size), wrong, "docker run --shm-size=2g ..., or data.num_workers=0")


def num_cores() -> int:
    """The cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = []
    for group in _own_groups("cpu"):
        if found := re.match(r"(\d+) (\d+)", _read(group / "cpu.max")):
            shares.append(int(found[1]) / int(found[2]))
        quota, period = (_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit():
            shares.append(int(quota) / int(period))
    return max(min(allowed, ceil(min(shares, default=allowed))), 1)


def free_memory() -> tuple[int | None, int | None]:
    """Bytes of memory that are free for this process, and that it could have at most; None where no one says."""
    info = dict(re.findall(r"(\w+):\s+(\d+) kB", _read(Path("/proc/meminfo"))))
    if "MemAvailable" not in info:
        return None, None
    free, whole = (1024 * int(info[name]) for name in ("MemAvailable", "MemTotal"))
    for group in _own_groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _read(group / limit), _read(group / used)
            if most.isdigit() and now.isdigit() and int(most) < whole:
                free, whole = min(free, int(most) - int(now)), int(most)
    return max(free, 0), whole


def _own_groups(kind: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, each within the next."""
    for line in _read(_OWN).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and kind not in kinds.split(","):
            continue
        root = _GROUPS / kind if kinds else _GROUPS
        inside = Path(path.lstrip("/"))
        yield from (root / part for part in (inside, *inside.parents) if (root / part).is_dir())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
