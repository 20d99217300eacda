"""What is built and installed: every file of conf/ and tasks/, and a command that works from anywhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import loralight

from .warm import run_warm

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("demo", "joblib", "peft", "report", "submitit", "test", "tune")
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the sources")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools writes build/ beside the sources, and would take old files from it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("loralight", "conf", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "docs").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "docs/debugging.md"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)], copy)
    (built,) = out.glob("*.whl")
    return built


def run(command: list[str], folder: Path) -> str:
    """Run a command that must succeed, as a user without this clone would; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(folder: str) -> set[str]:
    found = (file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {f"loralight/{file.relative_to(ROOT).as_posix()}" for file in found}


def test_the_wheel_holds_every_file_and_nothing_beside_the_package(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    library = {name.removeprefix("loralight/") for name in files_of("loralight")}
    page = {f"loralight-{loralight.__version__}.data/data/share/loralight/debugging.md"}
    files = files_of("conf") | files_of("tasks") | library | page
    assert sorted(files) == sorted(n for n in held if ".dist-info/" not in n)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a virtual environment that has the wheel, and of this one the dependencies alone."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    # An editable install in this environment is not followed from here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(wheel, python=python)
    return home / "bin"


def install(package: Path, *, python: Path | None = None, target: Path | None = None) -> None:
    """Install a package into another environment, or into a folder."""
    of_python = [] if python is None else ["--python", str(python)]
    into = ["--ignore-installed"] if target is None else ["--target", str(target)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *of_python, "install", "--no-deps", "--no-index"]
    run([*pip, "--no-build-isolation", *into, str(package)], package.parent)


def test_an_installed_wheel_trains_from_an_empty_folder(installed: Path, tiny_run: list[str], tmp_path: Path) -> None:
    found = run([str(installed / "python"), "-c", "import loralight; print(loralight.__file__)"], tmp_path).strip()
    assert Path(found).is_relative_to(installed.parent)
    printed = run([str(installed / "loralight"), "train", *tiny_run, "hydra.run.dir=run"], tmp_path)
    assert "test/accuracy" in printed
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_an_installed_wheel_explains_a_code_by_the_page_on_debugging(installed: Path, tmp_path: Path) -> None:
    printed = run([str(installed / "loralight"), "explain", "E-MEMORY"], tmp_path)
    assert "Out of memory (docs/debugging.md)" in printed and "E-MEMORY`) tells the allocation" in printed


def test_an_installed_wheel_writes_a_task_and_lists_it_once_it_is_installed(installed: Path, tmp_path: Path) -> None:
    run([str(installed / "loralight"), "new-task", "sentence_pairs"], tmp_path)
    install(tmp_path / "sentence_pairs", python=installed / "python")
    printed = run(["env", "COLUMNS=250", str(installed / "loralight"), "tasks"], tmp_path)
    assert "sentence_pairs 0.1.0" in printed, "listed with the package it is from"


def test_every_command_in_the_document_on_adding_a_task_runs(tmp_path: Path) -> None:
    """The package is installed into a folder; training is cut to a batch of everything."""
    text = (ROOT / "docs" / "add-a-task.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert any(line.startswith("pip install") for line in lines)
    site, printed = tmp_path / "site", ""
    for line in lines:
        if line.startswith("pip install "):
            install(tmp_path / line.split()[-1], target=site)
            continue
        given, _, command = line.rpartition(" | ")
        verb, *words = shlex.split(command)
        words += ["-q", "-p", "no:cacheprovider"] if verb == "pytest" else []
        words += ["debug=fast", "trainer.accelerator=cpu"] if "train" in words else []
        environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "250"}
        done = run_warm(["-m", verb, *words], cwd=tmp_path, env=environment, input="".join(shlex.split(given)[1:]))
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    assert re.search(r"^1\d passed", printed, re.MULTILINE)
    assert "sentence_pairs 0.1.0" in printed, "listed with the package it is from"
    assert re.search(r'^{"first": "The tea is cold.", .*"score": ', printed, re.MULTILINE)


def test_the_lowest_versions_that_are_tested_are_those_that_are_let_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"]
    taken = [*project["dependencies"], *(word for name in EXTRAS for word in extras[name])]
    for requirement in map(Requirement, taken):
        for floor in (part.version for part in requirement.specifier if part.operator == ">="):
            lowest = Version(floor).release  # 77 is 77.0.1 where 77.0.0 was withdrawn
            assert Version(pins[requirement.name]).release[: len(lowest)] == lowest, requirement


def test_the_version_stands_once_in_effect() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == loralight.__version__
