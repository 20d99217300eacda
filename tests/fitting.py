"""What tests share that fit a task of their own with Lightning's trainer."""

from typing import Any

import lightning


class Batches(list[Any]):
    """A loader; Lightning takes a plain list for several of them."""


def trainer(**settings: Any) -> lightning.Trainer:
    """Of one epoch on the CPU; it prints nothing and saves nothing by itself. ``settings`` are Lightning's."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, **quiet, **settings})
