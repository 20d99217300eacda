"""What is built and installed: every file of conf/ and tasks/, and a command that works from anywhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import loralight

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the sources")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools writes build/ beside the sources, and would take old files from it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("loralight", "conf", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
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
    assert sorted(files_of("conf") | files_of("tasks") | library) == sorted(n for n in held if ".dist-info/" not in n)


def test_an_installed_wheel_trains_from_an_empty_folder(wheel: Path, tiny_run: list[str], tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    # The dependencies are those of this environment; an editable install in it is not followed from here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    run([*pip, "--ignore-installed", "--disable-pip-version-check", str(wheel)], tmp_path)

    empty = tmp_path / "empty"
    empty.mkdir()
    found = run([str(python), "-c", "import loralight; print(loralight.__file__)"], empty).strip()
    assert Path(found).is_relative_to(home)
    printed = run([str(home / "bin" / "loralight"), "train", *tiny_run, "hydra.run.dir=run"], empty)
    assert "test/accuracy" in printed
    assert (empty / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert [entry.name for entry in empty.iterdir()] == ["run"]


def test_the_version_stands_once_in_effect() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == loralight.__version__
