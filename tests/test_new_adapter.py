"""The document on adding an adapter method: its files, written into an empty folder, do what its commands say."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("test_new_adapter")  # what all its tests share is made once

RunCommand = Callable[..., subprocess.CompletedProcess[str]]
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "add-an-adapter.md"
FILE = re.compile(r"^`([\w/.]+)`[^\n]*(?:\n[^\n`]+)*\n\n```(?:python|yaml|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target=site"]


@pytest.fixture(scope="module")
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the document's files."""
    folder = tmp_path_factory.mktemp("stranger")
    for name, content in FILE.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def run(run_command: RunCommand, line: str, folder: Path, tiny_bert: str) -> str:
    """Run one line in a shell, without pip's index; training is on a tiny model, and a batch of everything."""
    python = f"'{sys.executable}' -m"
    line = line.replace("PYTHONPATH=gain", 'PYTHONPATH="gain:$PYTHONPATH"')
    line = re.sub(r"\bpytest ", f"{python} pytest -q -p no:cacheprovider ", line)
    line = re.sub(r"\bloralight (?=train|predict|merge)", f"{python} loralight ", line)
    if " train " in line:
        line += f" debug=fast trainer.accelerator=cpu model.checkpoint='{tiny_bert}' model.max_length=16"
    line = line.replace("pip install", " ".join(f"'{word}'" for word in INSTALL))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["site", os.environ.get("PYTHONPATH", "")])}
    done = run_command(["bash", "-c", line], cwd=folder, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_it_shows_a_method_a_config_a_test_and_what_installs_them(text: str, folder: Path) -> None:
    found = {file.relative_to(folder / "gain").as_posix() for file in (folder / "gain").rglob("*") if file.is_file()}
    assert found == {"gain/__init__.py", "gain/conf/adapter/gain.yaml", "tests/test_gain.py", "pyproject.toml"}
    assert text.count("```python") + text.count("```yaml") + text.count("```toml") == len(found)


@pytest.mark.timeout(900)  # six processes in turn, each of which imports torch
def test_every_command_of_it_runs_in_a_process_of_its_own(
    text: str, folder: Path, tiny_bert: str, run_command: RunCommand
) -> None:
    printed = {line: run(run_command, line, folder, tiny_bert) for line in commands(text)}
    assert {line.split()[0] for line in printed} == {"loralight", "echo", "PYTHONPATH=gain", "pip"}
    for line, output in printed.items():
        if "pytest" in line:
            assert re.search(r"^1\d passed", output, re.MULTILINE), output
    assert (folder / "runs" / "gain_merged" / "config.json").is_file()
    assert (folder / "runs" / "installed" / "adapter" / "loralight.json").is_file()


def test_it_has_a_line_on_each_hook_of_an_adapter(text: str) -> None:
    table = text.partition("## What else a method can say")[2].partition("##")[0]
    told = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
    assert {"starts_at_base", "initialise_", "lr_factors", "penalty", "after_step_", "finish_"} <= set(told)
    assert {"apply_", "peft_config", "peft_names", "from_peft", "Added"} <= set(told)
