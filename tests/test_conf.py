"""The config groups, found by listing their folders: everything composes, and passes the check before a run."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from loralight.build import check_config
from loralight.composition import compose
from loralight.errors import InputError
from loralight.plugins import conf_folders

FOLDERS = conf_folders()
GROUPS = ("adapter", "optimizer", "scheduler", "trainer", "callbacks", "logger")


@cache
def options(group: str) -> list[str]:
    return sorted({file.stem for folder in FOLDERS for file in folder.glob(f"{group}/*.yaml")})


def pairs() -> Iterator[list[str]]:
    """Any two choices of different groups meet: a few hundred configs, where all combinations are thousands."""
    for one, other in combinations(GROUPS, 2):
        yield from ([f"{one}={a}", f"{other}={b}"] for a, b in product(options(one), options(other)))


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


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_passes_the_check_before_a_run(group: str, tmp_path: Path) -> None:
    for option in options(group):
        check_config(composed([f"{group}={option}"], tmp_path))


def test_any_two_choices_go_together(tmp_path: Path) -> None:
    for overrides in pairs():
        try:
            check_config(composed(overrides, tmp_path))
        except InputError as error:
            pytest.fail(f"{overrides}: {error}")


@pytest.mark.slow
def test_all_choices_go_together(tmp_path: Path) -> None:
    for chosen in product(*(options(group) for group in GROUPS)):
        check_config(composed([f"{group}={option}" for group, option in zip(GROUPS, chosen, strict=True)], tmp_path))


@pytest.mark.parametrize("group", ["task", "data", "experiment", "debug"])
def test_every_recipe_passes_the_check_before_a_run(group: str, tmp_path: Path) -> None:
    assert options(group)
    for option in options(group):
        check_config(composed([f"{group}={option}"], tmp_path))


@pytest.mark.parametrize("task", options("task"))
@pytest.mark.parametrize("adapter", options("adapter"))
def test_every_adapter_passes_the_check_on_every_task(task: str, adapter: str, tmp_path: Path) -> None:
    check_config(composed([f"task={task}", f"adapter={adapter}"], tmp_path))


@pytest.mark.parametrize("file", sorted(f for folder in FOLDERS for f in folder.rglob("*.yaml")), ids=str)
def test_every_file_says_what_it_is_for(file: Path) -> None:
    """Its own comment stands on top, or it only changes a few values of the file it extends."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ") or lines[0].startswith("defaults:") or len(lines) < 40
