"""The README's blocks of bash and python run, in their order, in one folder."""

import io
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
InProcess = Callable[..., int]


def blocks(language: str) -> list[str]:
    return [block for kind, block in every_block() if kind == language]


def every_block() -> list[tuple[str, str]]:
    """(language, text) of each block to run; one that begins with ``# not run`` is left out."""
    found = re.findall(r"^```(bash|python)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if not text.startswith("# not run")]


def test_there_is_something_to_run() -> None:
    assert blocks("python") and any("loralight train" in block for block in blocks("bash"))


def test_every_block_of_the_readme_runs(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for language, text in every_block():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["echo"] and "|" in words:
                monkeypatch.setattr("sys.stdin", io.StringIO(" ".join(words[1 : words.index("|")]) + "\n"))
                words = words[words.index("|") + 1 :]
            if not words:
                continue
            assert words[0] == "loralight", f"the test does not know how to run: {line}"
            if words[1] == "train" and "--help" not in words:
                words += ["debug=fast", "trainer.accelerator=cpu"]  # a batch of everything, on any machine
                if not any(word.startswith("hydra.run.dir=") for word in words):
                    words.append(f"hydra.run.dir=runs/{len(os.listdir('runs')) if Path('runs').exists() else 0}")
            assert in_process(*words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
