"""The hooks of Lightning that the base class of tasks owns: a task may not override them."""

from inspect import getattr_static

import lightning

from loralight.errors import InputError


def owned_hooks(base: type[lightning.LightningModule]) -> list[str]:
    """Names of Lightning's public methods and properties that ``base`` overrides, and ``automatic_optimization``."""
    own = {name for name in vars(base).keys() & set(dir(lightning.LightningModule)) if not name.startswith("_")}
    return sorted(own | {"automatic_optimization"})


def refuse_overriding(task: type[lightning.LightningModule], base: type[lightning.LightningModule]) -> None:
    """Raise if a task's class overrides a hook that ``base`` owns.

    Raises:
        TypeError: it does.
    """
    hooks = owned_hooks(base)
    if taken := [hook for hook in hooks if getattr_static(task, hook) is not getattr_static(base, hook)]:
        raise TypeError(
            f"{task.__name__} overrides {', '.join(taken)}, which AdapterTask owns: it would break freezing, "
            "checkpoints or resuming. Say what your task does in build_model, head, step, metrics and predict"
        )


def check_steps(task: lightning.LightningModule, updates_per_batch: int) -> None:
    """Check that the task leaves optimizer steps to the base class, and that ``updates_per_batch`` is possible.

    Raises:
        TypeError: the task sets ``automatic_optimization``.
        InputError: ``updates_per_batch`` is less than 1, or above 1 with accumulated batches (``E-UPDATES``).
    """
    name = type(task).__name__
    if not task.automatic_optimization:
        raise TypeError(
            f"{name} sets automatic_optimization=False, but AdapterTask makes the optimizer's steps: leave it as it "
            "is, and compute the loss in step"
        )
    told = f"{name}.updates_per_batch is {updates_per_batch}"
    if updates_per_batch < 1:
        raise InputError("E-UPDATES", f"{told}; give at least 1")
    if updates_per_batch > 1 < task.trainer.accumulate_grad_batches:
        raise InputError(
            "E-UPDATES",
            f"{told}, and a step cannot be of several batches too: set trainer.accumulate_grad_batches=1",
        )
