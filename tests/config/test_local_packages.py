"""A folder that the user names is what runs, or is refused: never other code that goes by its name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loralight.commands.new_task import write
from loralight.config.local_packages import VARIABLE, fault_of

Command = Callable[..., subprocess.CompletedProcess[str]]
InProcess = Callable[..., int]
CONF = """# @package _global_
defaults: [/data: text_classification]
model: {{checkpoint: {checkpoint}, max_length: 8, targets: all-linear}}
task: {{_target_: made_twin.module.Made}}
monitor: {{metric: validation/loss, mode: min}}
"""


def plugin(folder: Path) -> Path:
    """A plugin that says on stderr where its code lies, and in its config too."""
    (folder / "conf" / "task").mkdir(parents=True)
    loud = "import sys\nprint(f'running {__file__}', file=sys.stderr)\n"
    (folder / "__init__.py").write_text(loud)
    (folder / "module.py").write_text(f"from . import __name__ as package\n{loud}\n\nclass Made:\n    pass\n")
    (folder / "conf" / "task" / f"{folder.name}.yaml").write_text(CONF.format(checkpoint=folder.parent.name))
    return folder


def install(folder: Path, *, as_plugin: bool = True) -> Path:
    """Say beside the package ``folder`` that it is a distribution, as pip does."""
    info = folder.parent / f"{folder.name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1.2\n")
    if as_plugin:
        (info / "entry_points.txt").write_text(f"[loralight.tasks]\n{folder.name} = {folder.name}\n")
    return folder


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """A plugin in a folder, and another one of its name that is installed in ``site``."""
    return plugin(tmp_path / "mine" / "made_twin"), install(plugin(tmp_path / "site" / "made_twin"))


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_folder_stands_in_for_the_installed_plugin_of_its_name(
    by_variable: bool, twins: tuple[Path, Path], cold_loralight: Command
) -> None:
    mine, installed = twins
    environment = {"PYTHONPATH": str(installed.parent), **({VARIABLE: str(mine)} if by_variable else {})}
    flag = [] if by_variable else ["--plugin-dir", str(mine)]
    listed = cold_loralight("tasks", *flag, **environment)
    assert (listed.returncode, listed.stderr) == (0, f"running {mine}/__init__.py\n")
    assert f"from: {mine}\n" in listed.stdout and "made_twin 1.2" not in listed.stdout
    composed = cold_loralight("train", "task=made_twin", "--cfg", "job", *flag, **environment)
    assert "checkpoint: mine" in composed.stdout


@pytest.mark.parametrize("main", ["imports loralight", "imports nothing"])
def test_a_process_that_multiprocessing_starts_runs_the_folder_too(
    main: str, twins: tuple[Path, Path], tmp_path: Path
) -> None:
    """As data loaders' workers do, it unpickles the plugin's class before anything else."""
    mine, installed = twins
    (tmp_path / "main.py").write_text(
        f"{'import loralight' if main == 'imports loralight' else ''}\n"
        "if __name__ == '__main__':\n"
        "    from multiprocessing import get_context\n"
        "    from pathlib import Path\n"
        "    from loralight.config.plugins import use_folder\n"
        f"    use_folder(Path({str(mine)!r}))\n"
        "    from made_twin.module import Made\n"
        "    process = get_context('spawn').Process(target=isinstance, args=(Made(), Made))\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    ran = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stderr.splitlines() == 2 * [f"running {mine}/__init__.py", f"running {mine}/module.py"]


def stdlib_module(tmp_path: Path) -> tuple[Path, str]:
    return plugin(tmp_path / "token"), "Python's own module 'token'"


def imported_library(tmp_path: Path) -> tuple[Path, str]:
    return plugin(tmp_path / "pytest"), f"{Path(pytest.__file__).parent}, which is imported already"


def installed_library(tmp_path: Path) -> tuple[Path, str]:
    place = install(plugin(tmp_path / "site" / "made_library"), as_plugin=False)
    return plugin(tmp_path / "mine" / "made_library"), str(place / "__init__.py")


def module_on_the_path(tmp_path: Path) -> tuple[Path, str]:
    (tmp_path / "site" / "made_module.py").touch()
    return plugin(tmp_path / "mine" / "made_module"), str(tmp_path / "site" / "made_module.py")


def second_folder(tmp_path: Path) -> tuple[Path, str]:
    first = plugin(tmp_path / "first" / "made_twin")
    os.environ[VARIABLE] = str(first)
    return plugin(tmp_path / "second" / "made_twin"), str(first)


def task_of_loralight(tmp_path: Path) -> tuple[Path, str]:
    return plugin(tmp_path / "text_classification"), "its name is taken by the plugin from loralight"


def no_package(tmp_path: Path) -> tuple[Path, str]:
    (plugin(tmp_path / "made_empty") / "__init__.py").unlink()
    return tmp_path / "made_empty", "the folder has no __init__.py"


@pytest.mark.parametrize(
    "case",
    [
        stdlib_module,
        imported_library,
        installed_library,
        module_on_the_path,
        second_folder,
        task_of_loralight,
        no_package,
    ],
)
def test_a_folder_that_cannot_run_under_its_name_is_one_message_that_names_both_places(
    case: Callable[[Path], tuple[Path, str]],
    tmp_path: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder, other = case(tmp_path)
    assert in_process("train", "--plugin-dir", str(folder), "--cfg", "job") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("loralight: E-PLUGIN: ") and str(folder) in printed.err and other in printed.err


def test_a_folder_with_no_code_that_has_the_name_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout, where the package lies in a folder of its own name."""
    folder = plugin(tmp_path / "made_inside" / "made_inside")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(folder))
    assert fault_of(folder) == ""


CONTRACTS = """
from pathlib import Path
from loralight.testing import AdapterContract, TaskContract

PLUGIN = Path(__file__).parents[1] / "made_pairs"

class TestTask(TaskContract, overrides=["task=made_pairs"], plugin=PLUGIN):
    def test_place(self, config):
        import made_pairs
        assert Path(made_pairs.__file__).parent == PLUGIN

class TestMethod(AdapterContract, adapter="made_method", plugin=PLUGIN):
    def test_place(self, method):
        import made_pairs
        assert Path(made_pairs.__file__).parent == PLUGIN
"""


def test_the_contracts_test_the_folder_and_not_an_installed_copy(tmp_path: Path) -> None:
    write("made_pairs", tmp_path / "site")
    install(tmp_path / "site" / "made_pairs")
    write("made_pairs", tmp_path / "mine")
    (tmp_path / "mine" / "tests" / "test_contracts.py").write_text(CONTRACTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "mine/tests/test_contracts.py",
    ]
    ran = subprocess.run(
        [*command, "-k", "test_place or test_its_settings"],
        cwd=tmp_path,
        env={**os.environ, VARIABLE: "", "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "3 passed" in ran.stdout, ran.stdout
