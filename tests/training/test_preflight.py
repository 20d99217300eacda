"""What is told before a run starts is what the run will do."""

from types import SimpleNamespace
from typing import Any

import pytest

from loralight.config.build import build_data, build_task
from loralight.config.composition import compose, plain
from loralight.training.preflight import batch_lines, padding_line


@pytest.mark.parametrize(
    ("overrides", "computed"),
    [
        ([], "the encoder computes on the tokens alone"),
        (["~acceleration.unpadding"], "padding is computed like them"),
        (["adapter=prefix_tuning"], "padding is computed like them"),
    ],
)
def test_the_padding_of_training_batches_is_told_and_whether_it_is_computed(
    tiny_run: list[str], overrides: list[str], computed: str
) -> None:
    config = plain(compose("train", [*tiny_run, "data.length_grouped=false", "~callbacks", "~logger", *overrides]))
    data = build_data(config)
    task = build_task(config, data.model_arguments())
    masks = [batch["attention_mask"] for batch in data.train_dataloader()]
    places, tokens = sum(mask.numel() for mask in masks), sum(int(mask.sum()) for mask in masks)
    assert padding_line(task, data) == [
        f"padding: training batches have {places / tokens:.2f} places for each token; {computed}"
    ]


def test_images_have_no_padding_to_tell_of() -> None:
    line = ["task=image_classification", "data=digits_demo", "trainer=cpu", "~callbacks", "~logger"]
    config = plain(compose("train", [*line, "data.limit_rows=40"]))
    data = build_data(config)
    assert padding_line(build_task(config, data.model_arguments()), data) == []


@pytest.mark.parametrize(
    ("ranks", "accumulated", "line"),
    [
        (1, 1, "optimizer step: 8 rows"),
        (1, 2, "optimizer step: 16 rows: 2 accumulated batches x 8 rows"),
        (4, 1, "optimizer step: 32 rows: 4 processes x 8 rows"),
        (4, 2, "optimizer step: 64 rows: 4 processes x 2 accumulated batches x 8 rows"),
    ],
)
def test_the_rows_of_a_step_and_of_a_process_are_told(ranks: int, accumulated: int, line: str) -> None:
    trainer: Any = SimpleNamespace(world_size=ranks, accumulate_grad_batches=accumulated)
    data: Any = SimpleNamespace(batch_size=8, has_small_batches=False)
    first, *others = batch_lines(trainer, data)
    assert first == line
    assert [text.partition(":")[0] for text in others] == ["processes"] * (ranks > 1)
    data.has_small_batches = True
    assert batch_lines(trainer, data)[0] == f"{line} (few rows: data.batch_size=8, for more steps)"
