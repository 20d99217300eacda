"""The random numbers of a training step."""

import torch

from loralight.data.seeds import seed_of


def seed_step(seed: int, *, rank: int, epoch: int, batch: int, update: int = 0, device: torch.device) -> None:
    """Seed the generators of the CPU and of ``device``, so that a resumed run repeats the step.

    This does not use `torch.manual_seed`, which looks for other devices and takes 1 ms.

    Args:
        update: number of the optimizer step within those of the batch, from 0.
    """
    number = seed_of(seed, rank, epoch, batch, *([update] if update else []))
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
