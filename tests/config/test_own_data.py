"""Whoever names rows need not say that the demo's data are not wanted."""

from pathlib import Path

import pytest

from loralight.config.composition import compose
from loralight.config.own_data import with_own_data


@pytest.mark.parametrize("task", ["text_classification", "ner", "text_generation", "image_classification"])
@pytest.mark.parametrize("rows", ["data.path=mine", "data.train=mine.csv"])
def test_rows_of_the_user_s_take_the_place_of_the_demo_in_every_task(task: str, rows: str) -> None:
    given = [f"task={task}", rows]
    assert with_own_data(given) == [f"data={task}", *given]
    assert compose("train", with_own_data(given)).data == compose("train", [*given, f"data={task}"]).data


@pytest.mark.parametrize(
    "given",
    [
        ["adapter.rank=4"],
        ["data.path=null", "data.limit_rows=4"],
        ["data=sentiment_demo", "data.train=mine.csv"],
        ["experiment=sst2", "data.path=mine"],
        ["resume=runs/a", "data.path=mine"],
        ["task=somebodys", "data.path=mine"],
    ],
)
def test_a_command_that_says_which_data_or_names_no_rows_is_left_as_it_is(given: list[str]) -> None:
    assert with_own_data(given) == given


def test_a_folder_of_configs_may_hold_a_task_s_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "somebodys.yaml").write_text("{}")
    given = ["task=somebodys", "data.path=mine"]
    assert with_own_data(given, [str(tmp_path)]) == ["data=somebodys", *given]
