"""Checks of the installed packages against those that loralight needs, and of its extras."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from loralight.commands.checkup.finding import Finding, Machine
from loralight.version import __version__

_FOR_DEVELOPERS = ("bench", "dev", "docs", "test")


def system(machine: Machine) -> Finding:
    """The versions of loralight, Python and the system."""
    return Finding(f"loralight {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")


def packages(machine: Machine) -> Finding:
    """The packages without which nothing runs, with their versions."""
    needed = [requirement for requirement, extra in _requirements() if extra is None]
    faults = [fault for requirement in needed if (fault := _fault(requirement))]
    told = ", ".join(f"{one.name} {found}" for one in needed if (found := _version(one.name)))
    words = " ".join(f"'{one.name}{one.specifier}'" for one in needed if _fault(one))
    return Finding(told, "; ".join(faults), f"pip install {words}" if faults else "")


def extras(machine: Machine) -> Finding:
    """The extras that are complete; one that is there in too old a version is wrong."""
    by_extra: dict[str, list[Requirement]] = {}
    for requirement, extra in _requirements():
        if extra is not None and extra not in _FOR_DEVELOPERS:
            by_extra.setdefault(extra, []).append(requirement)
    whole = [extra for extra, needed in by_extra.items() if not any(map(_fault, needed))]
    old = {
        extra: [_fault(one) for one in needed if _version(one.name) and _fault(one)]
        for extra, needed in by_extra.items()
    }
    told = f"{', '.join(whole) or 'none'}; not installed: {', '.join(by_extra.keys() - whole) or 'none'}"
    broken = [extra for extra, faults in old.items() if faults]
    wrong = "; ".join(fault for faults in old.values() for fault in faults)
    return Finding(told, wrong, f'pip install -U "loralight[{",".join(broken)}]"' if broken else "")


def _requirements() -> Iterator[tuple[Requirement, str | None]]:
    """What loralight's own metadata asks for, each with its extra."""
    for line in requires("loralight") or []:
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        extra = marker.partition('extra == "')[2].partition('"')[0] or None
        yield requirement, extra


def _fault(needed: Requirement) -> str:
    found = _version(needed.name)
    if found is None:
        return f"{needed.name} is not installed"
    if needed.specifier.contains(found, prereleases=True):
        return ""
    return f"{needed.name} is {found}, and must be {needed.specifier}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
