"""The config groups, found by listing their folders: everything composes, and passes the check before a run."""

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from omegaconf import OmegaConf

from loralight.config.build import check_config
from loralight.config.composition import compose
from loralight.config.plugins import conf_folders
from loralight.data import TaskData
from loralight.training import AdapterTask

FOLDERS = conf_folders()
GROUPS = ("task", "adapter", "optimizer", "scheduler", "trainer", "acceleration", "callbacks", "logger")


@cache
def options(group: str) -> list[str]:
    return sorted({file.stem for folder in FOLDERS for file in folder.glob(f"{group}/*.yaml")})


def covering() -> Iterator[tuple[str, ...]]:
    """Configs in which any two choices of different groups meet: dozens, where all combinations are thousands."""
    groups = [[f"{group}={option}" for option in options(group)] for group in GROUPS]
    missing = {pair for one, other in combinations(groups, 2) for pair in product(one, other)}
    random = Random(0)
    while missing:
        seed = random.choice(sorted(missing))
        tries = [tuple(next((s for s in seed if s in g), random.choice(g)) for g in groups) for _ in range(30)]
        best = max(tries, key=lambda chosen: len(missing & set(combinations(chosen, 2))))
        missing -= set(combinations(best, 2))
        yield best


def composed(overrides: list[str], folder: Path) -> dict[str, Any]:
    """The config as a run has it; without Hydra's own part, to which two values refer."""
    config = compose("train", overrides)
    text = OmegaConf.to_yaml(config).replace("${hydra:runtime.output_dir}", str(folder))
    for part in ("task", "adapter"):
        text = text.replace(f"${{hydra:runtime.choices.{part}}}", part)
    made = OmegaConf.to_container(OmegaConf.create(text), resolve=True, throw_on_missing=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_no_config_group_is_empty(folder: Path) -> None:
    groups = [group for group in folder.rglob("*") if group.is_dir() and group.name != "__pycache__"]
    assert groups
    assert [group for group in groups if not list(group.rglob("*.yaml"))] == []


@pytest.mark.parametrize("choices", list(covering()), ids=lambda choices: " ".join(choices))
def test_any_two_choices_go_together(choices: tuple[str, ...], tmp_path: Path) -> None:
    check_config(composed(list(choices), tmp_path))


@pytest.mark.parametrize(
    ("part", "base", "built"),
    [("task", AdapterTask, {"adapter", "optimizer", "scheduler", "accelerations"}), ("data", TaskData, set())],
)
def test_what_every_plugin_can_be_told_stands_in_one_file(part: str, base: type, built: set[str]) -> None:
    parameters = inspect.signature(base).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in built}
    settings: Any = OmegaConf.load(FOLDERS[0] / "train.yaml")[part]  # type: ignore[index]
    recipe = {"head_lr": "auto"} if part == "task" else {}  # in Python nothing is chosen that was not said
    assert OmegaConf.to_container(settings) == defaults | {"seed": "${seed}"} | recipe
    files = [file for folder in FOLDERS for file in folder.glob(f"{part}/*.yaml")]
    for node in map(OmegaConf.load, files):
        own: Any = node.get(part, {}) if part in node or part == "task" else node
        assert [f"{name}={own[name]}" for name in defaults if name in own and own[name] == defaults[name]] in (
            [],
            ["path=None"],  # says what it may be
        )


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_every_recipe_passes_the_check_before_a_run(group: str, tmp_path: Path) -> None:
    assert options(group)
    for option in options(group):
        check_config(composed([f"{group}={option}"], tmp_path))


@pytest.mark.parametrize(
    "experiment", [file for folder in FOLDERS for file in folder.glob("experiment/*.yaml")], ids=lambda file: file.stem
)
def test_an_experiment_sets_a_method_s_settings_for_that_method_alone(experiment: Path, tmp_path: Path) -> None:
    assert "adapter" not in (OmegaConf.load(experiment)), "its settings of lora belong into adapter/<experiment>_lora"
    config = composed([f"experiment={experiment.stem}", "adapter=full"], tmp_path)
    assert config["adapter"] == composed([f"task={config['names']['task']}", "adapter=full"], tmp_path)["adapter"]
    own = experiment.parent / "adapter" / f"{experiment.stem}_lora.yaml"
    given = composed([f"experiment={experiment.stem}"], tmp_path)["adapter"]
    assert given.items() >= OmegaConf.to_container(OmegaConf.load(own)).items()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "own", [file for folder in FOLDERS for file in folder.glob("task/adapter/*.yaml")], ids=lambda file: file.stem
)
def test_a_task_s_settings_for_a_method_are_of_that_method_alone(own: Path, tmp_path: Path) -> None:
    task, _, method = own.stem.rpartition("_")
    given = composed([f"task={task}", f"adapter={method}"], tmp_path)["adapter"]
    assert given.items() >= OmegaConf.to_container(OmegaConf.load(own)).items()  # type: ignore[union-attr]
    assert (
        composed([f"task={task}", "adapter=bitfit"], tmp_path)["adapter"]
        == composed(["adapter=bitfit"], tmp_path)["adapter"]
    )


@pytest.mark.parametrize(
    "data", [file for folder in FOLDERS for file in folder.glob("data/*.yaml")], ids=lambda f: f.stem
)
def test_all_data_goes_with_the_task_it_comes_with(data: Path, tmp_path: Path) -> None:
    for task in data.parent.parent.glob("task/*.yaml"):
        check_config(composed([f"task={task.stem}", f"data={data.stem}"], tmp_path))


@pytest.mark.parametrize(
    "probe", [file for folder in FOLDERS for file in folder.glob("forgetting/*.yaml")], ids=lambda file: file.stem
)
def test_every_probe_of_forgetting_takes_the_settings_of_its_file(probe: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("a fine day\n")
    (tmp_path / "image.png").write_bytes(b"read later")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("{}\n")
    needed = {"texts": tmp_path / "general.txt", "images": tmp_path, "run": tmp_path}
    missing = [str(name) for name in OmegaConf.load(probe) if OmegaConf.is_missing(OmegaConf.load(probe), name)]
    words = [f"forgetting={probe.stem}", *(f"forgetting.{name}='{needed[name]}'" for name in missing)]
    check_config(composed(words, tmp_path))
