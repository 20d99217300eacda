"""The buffers that DDP sends from the first process to the others in each step: those that learn."""

from collections.abc import Collection

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def spare_frozen_buffers_(task: nn.Module, learning: Collection[str]) -> None:
    """Have DDP leave alone the buffers that never change, such as positions and the statistics of frozen BatchNorm.

    Every process has read the same ones. DDP would send all buffers of the model before each step.

    Args:
        task: the module that will be trained.
        learning: names of what learns in it.
    """
    frozen = [name for name, _ in task.named_buffers() if name not in learning]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, frozen)  # type: ignore[no-untyped-call]
