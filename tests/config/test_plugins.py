"""Task plugins: found in loralight, in packages and in folders, and no trouble to others when broken."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from loralight.commands.new_task import write
from loralight.config.build import check_config
from loralight.config.check import find_target
from loralight.config.composition import compose, explain, plain, trusted_packages
from loralight.config.plugins import VARIABLE, Plugin, add_folder, check_folders, conf_folders, discover, task_file
from loralight.errors import InputError

InProcess = Callable[..., int]
TASK = """# @package _global_
defaults: [/data: text_classification]
model: {{checkpoint: none, max_length: 8, targets: all-linear}}
task: {{_target_: {package}.module.Made}}
monitor: {{metric: validation/loss, mode: min}}
"""


def write_plugin(folder: Path) -> Path:
    """A plugin of one task, which is called like its folder."""
    (folder / "conf" / "task").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""What it is for.\n\nMore."""\n')
    (folder / "module.py").write_text("class Made:\n    pass\n")
    (folder / "conf" / "task" / f"{folder.name}.yaml").write_text(TASK.format(package=folder.name))
    return folder


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(VARIABLE, "")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("made_"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package on sys.path that names itself in the entry points, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(name: str, *, value: str | None = None) -> Path:
        info = site / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[loralight.tasks]\n{name} = {value or name}\n")
        return site / name

    return add


def found(name: str) -> Plugin:
    return next(plugin for plugin in discover() if plugin.name == name)


def test_the_tasks_of_loralight_are_found_and_sound() -> None:
    plugin = found("text_classification")
    assert (plugin.fault, plugin.origin) == ("", "loralight")
    assert plugin.package == "loralight.tasks.text_classification"
    assert [file.stem for file in plugin.tasks()] == ["text_classification"]
    assert plugin.summary().startswith("One label, or several")


def test_a_local_folder_composes_and_its_class_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_plugin(tmp_path / "made_local")
    monkeypatch.setenv(VARIABLE, str(folder))
    plugin = found("made_local")
    assert (plugin.fault, plugin.origin, plugin.summary()) == ("", str(folder), "What it is for.")
    assert folder / "conf" in conf_folders()
    assert "made_local.module" not in sys.modules  # found without being run
    config = compose("train", ["task=made_local"])
    assert find_target(config.task._target_, "task", trusted_packages()).__module__ == "made_local.module"


def test_a_stranger_s_task_and_data_take_what_all_do_without_a_line_for_it(tmp_path: Path) -> None:
    write("made_pairs", tmp_path / "made_pairs")
    add_folder(str(tmp_path / "made_pairs" / "made_pairs"))
    said = ["task=made_pairs", "task.head_lr=0.1", "task.base_dropout=false", "data.train=my.csv", "data.num_workers=2"]
    config = plain(compose("train", ["trainer=cpu", "~callbacks", "~logger", *said]))
    check_config(config)
    assert (config["task"]["head_lr"], config["data"]["train"], config["data"]["batch_size"]) == (0.1, "my.csv", 16)
    with pytest.raises(ConfigCompositionException) as caught:
        compose("train", ["task=made_pairs", "task.head_rate=0.1"])
    message = explain(caught.value, "train", ["task=made_pairs", "task.head_rate=0.1"])
    assert message and "there is no setting 'task.head_rate'. Did you mean 'head_lr' or 'head_start'?" in message


def test_folders_add_up_without_repeating(tmp_path: Path) -> None:
    for name in ("made_one", "made_two", "made_one"):
        if not (tmp_path / name).exists():
            write_plugin(tmp_path / name)
        add_folder(str(tmp_path / name))
    assert os.environ[VARIABLE].split(os.pathsep) == [str(tmp_path / "made_one"), str(tmp_path / "made_two")]
    assert {"made_one", "made_two"} <= {plugin.name for plugin in discover()}


def test_a_folder_that_is_named_twice_is_one_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "made_twice")  # as a user writes it
    add_folder(str(write_plugin(tmp_path / "made_twice")))  # as the contract does
    check_folders()
    assert [plugin.fault for plugin in discover() if plugin.name == "made_twice"] == [""]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_command_line_takes_a_plugin_folder_anywhere(
    place: int, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plugin(tmp_path / "made_given")
    line = ["train", "task=made_given", "--cfg", "job"]
    line[place:place] = ["--plugin-dir", "made_given"]
    assert in_process(*line) == 0
    assert "_target_: made_given.module.Made" in capsys.readouterr().out


def test_an_installed_package_is_found_by_its_entry_point(
    install: Callable[..., Path], capsys: pytest.CaptureFixture[str], in_process: InProcess
) -> None:
    write_plugin(install("made_installed"))
    plugin = found("made_installed")
    assert (plugin.fault, plugin.origin) == ("", "made_installed 1.2")
    assert "made_installed" not in sys.modules
    assert "made_installed" in trusted_packages()
    assert compose("train", ["task=made_installed"]).task._target_ == "made_installed.module.Made"
    assert in_process("tasks") == 0
    assert "made_installed" in capsys.readouterr().out


def test_a_plugin_may_bring_an_adapter_method_and_no_task(
    tmp_path: Path, in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made_method"
    (folder / "conf" / "adapter").mkdir(parents=True)
    (folder / "__init__.py").write_text("from loralight.adapters.methods.bitfit import BitFit as Made\n")
    (folder / "conf" / "adapter" / "made_method.yaml").write_text("_target_: made_method.Made\nlr: 0.1\n")
    add_folder(str(folder))
    assert (found("made_method").fault, found("made_method").tasks()) == ("", [])
    assert find_target(compose("train", ["adapter=made_method"]).adapter._target_, "adapter", trusted_packages())
    assert in_process("tasks") == 0
    assert "broken" not in capsys.readouterr().out


def no_conf(tmp_path: Path, install: Callable[..., Path]) -> None:
    (tmp_path / "made_bad").mkdir()
    (tmp_path / "made_bad" / "__init__.py").touch()
    add_folder(str(tmp_path / "made_bad"))


def no_package(tmp_path: Path, install: Callable[..., Path]) -> None:
    (write_plugin(tmp_path / "made_bad") / "__init__.py").unlink()
    add_folder(str(tmp_path / "made_bad"))


def no_such_folder(tmp_path: Path, install: Callable[..., Path]) -> None:
    add_folder(str(tmp_path / "made_bad"))


def not_importable(tmp_path: Path, install: Callable[..., Path]) -> None:
    install("made_bad", value="made_nowhere")


def a_module_is_no_package(tmp_path: Path, install: Callable[..., Path]) -> None:
    install("made_bad", value="made_file").with_name("made_file.py").touch()


def parent_raises(tmp_path: Path, install: Callable[..., Path]) -> None:
    parent = install("made_bad", value="made_parent.inner").with_name("made_parent")
    parent.mkdir()
    (parent / "__init__.py").write_text("raise SystemError('out of order')\n")


def taken_name(tmp_path: Path, install: Callable[..., Path]) -> None:
    write_plugin(install("made_bad", value="made_other").with_name("made_other"))
    add_folder(str(write_plugin(tmp_path / "made_bad")))


def shadows_the_core(tmp_path: Path, install: Callable[..., Path]) -> None:
    folder = write_plugin(tmp_path / "made_bad")
    (folder / "conf" / "adapter").mkdir()
    (folder / "conf" / "adapter" / "lora.yaml").touch()
    add_folder(str(folder))


def shadows_another(tmp_path: Path, install: Callable[..., Path]) -> None:
    folder = write_plugin(tmp_path / "made_bad")
    (folder / "conf" / "task" / "text_classification.yaml").touch()
    add_folder(str(folder))


def cannot_be_read(tmp_path: Path, install: Callable[..., Path]) -> None:
    add_folder(str(write_plugin(tmp_path / "made_bad")))
    (tmp_path / "made_bad" / "__init__.py").write_text("def (:\n")


@pytest.mark.parametrize(
    ("breaks", "fault"),
    [
        (no_conf, "has no conf folder"),
        (no_package, "has no __init__.py"),
        (no_such_folder, "has no __init__.py"),
        (not_importable, "'made_nowhere' is not a package that can be imported"),
        (a_module_is_no_package, "'made_file' is not a package that can be imported"),
        (parent_raises, "raises SystemError: out of order"),
        (taken_name, "its name is taken by the plugin from made_bad 1.2"),
        (shadows_the_core, "conf/adapter/lora.yaml is already provided by loralight itself"),
        (shadows_another, "conf/task/text_classification.yaml is already provided by loralight"),
        (cannot_be_read, "its __init__.py cannot be read: invalid syntax"),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else "",
)
def test_a_broken_plugin_is_one_line_and_harms_no_other(
    breaks: Callable[[Path, Callable[..., Path]], None],
    fault: str,
    tmp_path: Path,
    install: Callable[..., Path],
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    breaks(tmp_path, install)
    add_folder(str(write_plugin(tmp_path / "made_sound")))
    broken = [plugin for plugin in discover() if plugin.fault]
    assert [plugin.name for plugin in broken] == ["made_bad"]
    assert fault in broken[0].fault and broken[0].tasks() == []
    assert compose("train", ["task=made_sound"]).task._target_ == "made_sound.module.Made"
    assert compose("train", []).adapter.rank == 8  # the core's own file
    assert in_process("tasks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [fault in line for line in lines if line.startswith("broken: made_bad")] == [True]
    if breaks is not taken_name:
        assert in_process("train", "task=made_bad") == 2
        assert fault in capsys.readouterr().err
        with pytest.raises(InputError, match="E-TASK") as caught:
            task_file("made_bad")
        assert fault in str(caught.value)


@pytest.mark.parametrize("line", ["import made_nowhere", "raise OSError('out of order')", "import sys; sys.exit(3)"])
def test_a_plugin_whose_import_fails_is_listed_as_broken_and_harms_no_other(
    line: str,
    tmp_path: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("made_bad_inside", "made_sound_beside"):
        add_folder(str(write_plugin(tmp_path / name)))
    (tmp_path / "made_bad_inside" / "__init__.py").write_text(f"print('loud')\n{line}\n")
    assert in_process("tasks") == 0
    printed = capsys.readouterr().out
    assert "\nmade_sound_beside\n" in printed and "\nmade_bad_inside\n" not in printed and "loud" not in printed
    assert re.search("^broken: made_bad_inside .*importing 'made_bad_inside' raises .*Error|SystemExit", printed, re.M)
    assert in_process("train", "task=made_bad_inside") == 2
    assert "E-TARGET" in capsys.readouterr().err


def test_a_task_that_does_not_compose_is_told_beside_the_others(
    tmp_path: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder = write_plugin(tmp_path / "made_bad")
    (folder / "conf" / "task" / "made_bad.yaml").write_text("defaults: [/data: nowhere]\n")
    add_folder(str(folder))
    assert in_process("tasks") == 0
    printed = capsys.readouterr().out
    assert "\ntext_classification\n" in printed and "\nmade_bad" not in printed
    assert "conf/task/made_bad.yaml does not compose" in printed


def test_a_task_is_looked_up_by_its_name(tmp_path: Path) -> None:
    add_folder(str(write_plugin(tmp_path / "made_here")))
    assert task_file("made_here") == tmp_path / "made_here" / "conf" / "task" / "made_here.yaml"
    with pytest.raises(InputError, match=r"E-TASK: .*'made_gone'.* made_here, "):
        task_file("made_gone")


def test_broken_yaml_in_a_plugin_is_one_message_with_file_and_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    plugin = write_plugin(tmp_path / "made_broken")
    file = plugin / "conf" / "task" / "made_broken.yaml"
    file.write_text(f"{file.read_text()}model: [1, 2\nseed: 3\n")
    told = refused("train", "task=made_broken", "--plugin-dir", str(plugin)).strip()
    assert f"E-PLUGIN: the plugin in {plugin} cannot be used: {file}, line 7: " in told and told.count("\n") == 0
    file.write_text(TASK.format(package="made_broken"))
    add_folder(str(plugin))
    assert not found("made_broken").fault, "it is read again once it has changed"


def test_an_import_that_fails_in_a_plugin_is_told_with_its_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = write_plugin(tmp_path / "made_hasty")
    (plugin / "module.py").write_text("import math\n\nimport no_such_thing\n\n\nclass Made: ...\n")
    add_folder(str(plugin))
    discover()
    message = rf"No module named 'no_such_thing' \({plugin}/module.py, line 3\)$"
    with pytest.raises(InputError, match=rf"cannot import 'made_hasty.module.Made': ModuleNotFoundError: {message}"):
        find_target("made_hasty.module.Made", "task", trusted_packages())
    assert not caplog.records  # Hydra's own lines on it
