"""Which of two ways to compute the same is faster on this processor, found by a trial.

No name of a processor tells it: oneDNN's product of 1024 x 768 and 768 x 3072 numbers takes 0.45 of `F.linear`'s time
on an AMD Zen 5, and 1.1 to 2.2 of it on an Intel Xeon with AMX. Two ways round differently. So an answer is kept in the
user's cache, and the same run on the same machine computes the same numbers every time.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock
from torch.utils._python_dispatch import _disable_current_modes

Way = Callable[[], Any]

_ROUNDS = 10  # of each way in turns; the least time of each counts, as other programs can only add to it
_GAIN = 0.96  # of the plain way's time; above it, it may be noise, and the plain way stays
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
_WAIT = 10.0  # seconds for another process's trial

_answers: dict[tuple[object, ...], bool] = {}


def is_faster(*question: object, ways: Callable[[], tuple[Way, Way]]) -> bool:
    """Whether one way takes less time than the plain one; timed once for each processor and number of threads.

    Args:
        question: the way's name, and what its time depends on, such as shapes.
        ways: makes both, the plain one last; they compute the same up to rounding, and draw no random numbers.
    """
    question = (*question, torch.get_num_threads())
    if question not in _answers:
        _answers[question] = _asked(" ".join(map(str, question)), ways)
    return _answers[question]


def kept() -> dict[str, bool]:
    """The answers that are kept for this processor, by question."""
    return {question: bool(answer) for question, answer in _read(_file()).get(processor(), {}).items()}


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "loralight" / "faster.json"


def _asked(question: str, ways: Callable[[], tuple[Way, Way]]) -> bool:
    """The answer that is kept, else that of a trial, which is then kept if the cache can be written to."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=_WAIT):  # of several processes one tries, and all compute alike
            kept = _read(file)
            answers = kept.setdefault(processor(), {})
            if not isinstance(answers.get(question), bool):
                answers[question] = _try(ways)
                _write(file, kept)
            return bool(answers[question])
    except (OSError, RuntimeError):  # a home that is read-only, or none, or a lock that is not released
        return _try(ways)


@torch.no_grad()
def _try(ways: Callable[[], tuple[Way, Way]]) -> bool:
    least = [float("inf"), float("inf")]
    with _disable_current_modes():  # what counts a step's bytes or operations would count the trial too
        both = ways()
        for turn in range(_ROUNDS + 1):
            for side, compute in enumerate(both):
                start = perf_counter()
                compute()
                if turn:  # the first one warms up
                    least[side] = min(least[side], perf_counter() - start)
    return least[0] < _GAIN * least[1]


@cache
def processor() -> str:
    """The processor, with what else decides how fast its products are."""
    model = ""
    with suppress(OSError):  # other systems than Linux have no such file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        found = {name.strip(): value.strip() for name, value in found.items()}
        model = " ".join(found.get(name, "") for name in ("model name", "cpu family", "model", "stepping"))
    given = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return ", ".join([model, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *given])


def _read(file: Path) -> dict[str, dict[str, Any]]:
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and all(isinstance(answers, dict) for answers in kept.values()):
            return kept
    return {}


def _write(file: Path, kept: dict[str, dict[str, Any]]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    new.replace(file)
