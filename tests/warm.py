"""Commands in processes that are forked from one that has imported what they need, which takes 7 s of CPU time.

Each is a process of its own in all else: arguments, folder, environment, output, exit code, signals. Tests of what
starting a process means (imports, what the environment says to them, launching others) start a cold one.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *(f"loralight.commands.{verb}" for verb in ("train", "predict", "evaluate", "merge", "sweep")),
        *(f"loralight.tasks.{task}" for task in ("text_classification", "ner", "text_generation")),
        "loralight.tasks.image_classification",
    ]
)


def run_warm(
    command: list[str], *, cwd: Path, env: dict[str, str] | None = None, input: str = "", timeout: float = 550
) -> subprocess.CompletedProcess[str]:
    """Run ``python COMMAND``, and leave nothing of its group of processes.

    Args:
        command: ``-c CODE``, ``-m MODULE`` or a script, and arguments.
        cwd: where.
        env: the whole environment; this process's if None.
        input: what it reads.
        timeout: seconds, after which it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, told, erred = (Path(folder) / name for name in ("in", "out", "err"))
        given.write_text(input, encoding="utf-8")
        files = [str(given), str(told), str(erred)]
        process = CONTEXT.Process(target=_become, args=(command, str(cwd), {**(env or os.environ)}, files))
        _start(process)
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(command, timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        printed = (file.read_text(encoding="utf-8") for file in (told, erred))
        return subprocess.CompletedProcess(command, process.exitcode, *printed)


def _start(process: multiprocessing.process.BaseProcess) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # which the process takes over, to find this file
    try:
        process.start()
    finally:
        sys.path.pop(0)


def _become(command: list[str], folder: str, environment: dict[str, str], files: list[str]) -> None:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(os.open(file, (os.O_WRONLY | os.O_CREAT) if number else os.O_RDONLY), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # that of a process that nobody has forked
    sys.path[0] = ""
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = command
    if kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(kind, run_name="__main__")
