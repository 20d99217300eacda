"""What is told before a run starts is what the run will do."""

import pytest

from loralight.config.build import build_data, build_task
from loralight.config.composition import compose, plain
from loralight.training.preflight import padding_line


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
