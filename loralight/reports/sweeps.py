"""A sweep's folder: the results and errors of its jobs, and the best run."""

import json
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from loralight.artifacts.run_folder import FAILED
from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import SUMMARY, FinishedRun, by_number, read_run
from loralight.untrusted import read_json

NAME, BEST = "sweep", "best"
"""Names of the files with a sweep's results, and of the link to its best run."""


def note_failure(job: Path, error: str) -> None:
    """Save the reason why a job of a sweep has no result."""
    job.mkdir(parents=True, exist_ok=True)
    (job / FAILED).write_text(json.dumps({"error": error}, indent=2) + "\n", encoding="utf-8")


def read_sweep(folder: Path) -> Comparison | dict[str, str]:
    """A comparison of a sweep's jobs; or the errors of all jobs, if none has a result.

    A job may have both, if its folder holds a finished run and a run with other settings failed there.
    """
    jobs = sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()), key=by_number)
    runs, failures = list[FinishedRun](), dict[str, str]()
    for job in jobs:
        try:
            if (job / FAILED).exists():
                failures[job.name] = str(read_json(job / FAILED).get("error"))
            if (job / SUMMARY).exists():
                runs.append(read_run(job))
        except InputError as error:
            failures[job.name] = str(error)
    return Comparison.of(runs, failures=failures) if runs else failures


def finish(folder: Path) -> Comparison | dict[str, str]:
    """Write a sweep's table and page, link ``best`` to its best run, and return the result of `read_sweep`."""
    read = read_sweep(folder)
    if isinstance(read, Comparison):
        write_report(read, folder, f"sweep {folder.name}", NAME)
        point_to_best(read, folder)
    return read


def point_to_best(comparison: Comparison, folder: Path) -> None:
    """Link ``best`` in a folder to the best run."""
    if comparison.best is not None:
        _point(folder / BEST, os.path.relpath(comparison.best.runs[0].folder, folder))


def write_report(comparison: Comparison, folder: Path, title: str, name: str) -> list[Path]:
    """Write a comparison in all forms whose packages are installed; returns the files."""
    is_drawn = all(map(find_spec, ("matplotlib", "jinja2")))  # the report extra
    return comparison.write(folder, title, name, is_drawn=is_drawn)


def _point(link: Path, target: str) -> None:
    """Make ``link`` lead to ``target``, a path from the link's folder, if the file system supports links."""
    new = link.with_name(f".{link.name}")
    with suppress(OSError):
        new.unlink(missing_ok=True)
        new.symlink_to(target, target_is_directory=True)
        os.replace(new, link)
