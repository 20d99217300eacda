"""Documents on adding a method or an acceleration: their files, written into an empty folder, do what they say."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loralight.acceleration import Acceleration
from loralight.adapters import Adapter

from .warm import run_warm

RunCommand = Callable[..., subprocess.CompletedProcess[str]]
DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
PACKAGES = {"add-an-adapter.md": "gain", "add-an-acceleration.md": "denormals"}
PROBE = "forgetting.md"
FILE = re.compile(r"^`([\w/.]+)`[^\n]*(?:\n[^\n`]+)*\n\n```(?:python|yaml|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target=site"]


@pytest.fixture(scope="module", params=PACKAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def text(name: str) -> str:
    return (DOCUMENTS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a document's files."""
    folder = tmp_path_factory.mktemp("stranger")
    for file, content in FILE.findall(text):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8")
    return folder


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def run(run_command: RunCommand, line: str, folder: Path, tiny_bert: str) -> str:
    """Run one line, without pip's index; training is on a tiny model, and a batch of everything."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["site", os.environ.get("PYTHONPATH", "")])}
    if " train " in line:
        line += f" debug=fast trainer.accelerator=cpu model.checkpoint='{tiny_bert}' model.max_length=16"
    if command := re.fullmatch(r'(?:echo "(.*)" \| )?(loralight .*)', line):
        arguments = ["-m", *shlex.split(command[2])]
        done = run_warm(arguments, cwd=folder, env=environment, input=f"{command[1] or ''}\n")
    else:
        line = re.sub(r"^PYTHONPATH=(\w+)", r'PYTHONPATH="\1:$PYTHONPATH"', line)
        line = re.sub(r"\bpytest ", f"'{sys.executable}' -m pytest -q -p no:cacheprovider ", line)
        line = line.replace("pip install", " ".join(f"'{word}'" for word in INSTALL))
        done = run_command(["bash", "-c", line], cwd=folder, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_it_shows_a_class_a_config_and_a_test(name: str, text: str, folder: Path) -> None:
    package = PACKAGES[name]
    group = name.removeprefix("add-an-").removesuffix(".md")
    found = {file.relative_to(folder / package).as_posix() for file in (folder / package).rglob("*") if file.is_file()}
    wanted = {f"{package}/__init__.py", f"{package}/conf/{group}/{package}.yaml", f"tests/test_{package}.py"}
    assert found - {"pyproject.toml"} == wanted
    assert text.count("```python") + text.count("```yaml") + text.count("```toml") == len(found)


@pytest.mark.timeout(900)  # up to six processes in turn
def test_every_command_of_it_runs_in_a_process_of_its_own(
    name: str, text: str, folder: Path, tiny_bert: str, run_command: RunCommand
) -> None:
    package = PACKAGES[name]
    printed = {line: run(run_command, line, folder, tiny_bert) for line in commands(text)}
    assert {line.split()[0] for line in printed} >= {"loralight", f"PYTHONPATH={package}"}
    for line, output in printed.items():
        if "pytest" in line:
            assert re.search(r"^\d+ passed", output, re.MULTILINE), output
    made = [line.rpartition("hydra.run.dir=")[2] for line in printed if "hydra.run.dir=" in line]
    assert made and all((folder / run / "adapter" / "loralight.json").is_file() for run in made)
    merged = [line.rpartition("output=")[2] for line in printed if " merge " in line]
    assert all((folder / output / "config.json").is_file() for output in merged)


def test_it_has_a_line_on_each_hook(name: str, text: str) -> None:
    contract = {"add-an-adapter.md": Adapter, "add-an-acceleration.md": Acceleration}[name]
    hooks = {hook for hook in vars(contract) if not hook.startswith("_")} - {"lr"}
    table = text.partition("\n## Optional parts of ")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
    assert hooks <= set(told)


def test_the_probe_of_forgetting_that_a_document_shows_measures(
    tmp_path: Path, tiny_bert: str, run_command: RunCommand
) -> None:
    text = (DOCUMENTS / PROBE).read_text(encoding="utf-8")
    files = dict(FILE.findall(text))
    assert {*files} == {"lengths/lengths/__init__.py", "lengths/lengths/conf/forgetting/lengths.yaml"}
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content, encoding="utf-8")
    (line,) = [line for line in commands(text) if "--plugin-dir" in line]
    run(run_command, line, tmp_path, tiny_bert)
    metrics = json.loads((tmp_path / "runs/lengths/summary.json").read_text())["metrics"]
    assert metrics["forgetting/length"] == metrics["forgetting/length_before"] == metrics["forgetting/length_off"] > 0
