"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from loralight.adapters.base import Adapter, trainable
from loralight.errors import InputError, did_you_mean
from loralight.models.shards import sharded_as


def parameter_groups(
    model: nn.Module,
    adapter: Adapter,
    *,
    lr: float,
    head: Sequence[nn.Module] = (),
    head_lr: float | None = None,
    head_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Every trainable parameter, once, in groups of equal learning rate and weight decay.

    Vectors and scalars (biases, norms) have no weight decay, whatever the optimizer's is. Parameters that the adapter
    starts to train later are in groups with a ``start``, a fraction of the run.

    Args:
        lr: the optimizer's learning rate per step; the adapter's ``lr_factors`` multiply it.
        head_lr: learning rate of the head; ``lr`` if None.
        head_weight_decay: weight decay of the head's matrices; the optimizer's if None.

    Returns:
        Groups for any torch optimizer: ``params`` as (name, parameter) pairs, so that its state knows their names.
    """
    in_head = {id(parameter) for part in head for parameter in part.parameters()}
    factors = {id(parameter): factor for parameter, factor in adapter.lr_factors(model).items()}
    starts = {id(parameter): start for parameter, start in adapter.starts(model).items()}
    undecayed = {id(parameter) for parameter in adapter.undecayed(model)}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in trainable(model).items():
        of_head = id(parameter) in in_head
        settings = {"name": "head" if of_head else "adapter", "lr": lr * factors.get(id(parameter), 1.0)}
        if of_head and head_lr is not None:
            settings["lr"] = head_lr
        if not of_head and starts.get(id(parameter)):
            settings["start"] = starts[id(parameter)]
        if parameter.ndim < 2 or id(parameter) in undecayed:
            settings["weight_decay"] = 0.0
        elif of_head and head_weight_decay is not None:
            settings["weight_decay"] = head_weight_decay
        key = tuple(settings.items())
        groups.setdefault(key, {**settings, "params": []})["params"].append((name, parameter))
    return list(groups.values())


def leave_unscaling_(optimizer: Optimizer) -> None:
    """Leave it to the gradient scaler to unscale gradients, before they are clipped.

    A fused optimizer says that it unscales within its step, and Lightning then refuses to clip, even without a scaler.
    """
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = False


def check_partial(optimizer: Any) -> None:
    """Raise ``E-OPTIMIZER`` unless a task's optimizer is None, or a partial with a learning rate."""
    if optimizer is not None and not (isinstance(optimizer, partial) and "lr" in optimizer.keywords):
        raise InputError(
            "E-OPTIMIZER",
            f"optimizer is {optimizer!r:.80}; give one such as functools.partial(torch.optim.AdamW, lr=1e-3)",
        )


def check_optimizer(optimizer: Any) -> None:
    """Check an optimizer's settings before there is a model, by constructing it for one small matrix.

    Args:
        optimizer: a `functools.partial`, as the config's node makes it.

    Raises:
        InputError: it has no learning rate above 0 (``E-LR``), or its class refuses a setting, or a step with it would
            fail or make weights nan (``E-OPTIMIZER``).
    """
    if not isinstance(optimizer, partial) or "lr" not in optimizer.keywords:
        raise InputError("E-OPTIMIZER", "optimizer: give it _partial_: true and lr, as conf/optimizer/adamw.yaml does")
    settings = optimizer.keywords
    check_rate("optimizer.lr", settings["lr"])
    for name, default in signature(optimizer.func).parameters.items():
        given, usual = settings.get(name), default.default
        if isinstance(given, float) and not math.isfinite(given):
            raise InputError("E-OPTIMIZER", f"optimizer.{name} is {given}; give a finite number")
        if isinstance(usual, tuple) and given is not None and len(given) != len(usual):
            raise InputError("E-OPTIMIZER", f"optimizer.{name} is {given}; give {len(usual)} numbers, such as {usual}")
    if settings.get("eps") == 0:  # a gradient of 0 would give an update of 0 / 0
        raise InputError("E-OPTIMIZER", "optimizer.eps is 0; give a small number above it, such as 1e-8")
    try:
        optimizer([{"params": [("matrix", nn.Parameter(torch.zeros(2, 2)))]}])
    except (ValueError, TypeError, RuntimeError, AssertionError, ImportError) as error:
        raise InputError("E-OPTIMIZER", f"optimizer: {' '.join(str(error).split())}") from error


def check_rate(where: str, rate: float) -> None:
    """Raise ``E-LR`` unless a learning rate is a finite number above 0."""
    if not 0 < rate < math.inf:
        raise InputError(
            "E-LR", f"{where} is {rate}; with that nothing is learned. Give a number above 0, such as 1e-3 for LoRA"
        )


def check_weight_decay(where: str, decay: float) -> None:
    """Raise ``E-OPTIMIZER`` unless a weight decay is a finite number of at least 0."""
    if not 0 <= decay < math.inf:
        raise InputError("E-OPTIMIZER", f"{where} is {decay}; give a number of at least 0, such as 0.01")


def schedule(
    optimizer: Optimizer, num_steps: int, *, name: str, warmup: float = 0.0, arguments: dict[str, Any] | None = None
) -> LRScheduler:
    """A schedule that multiplies each group's learning rate by a factor of the step (``transformers.get_scheduler``).

    Args:
        num_steps: optimizer steps of the whole run.
        name: ``linear``, ``cosine``, ``constant_with_warmup`` or any other schedule of transformers.
        warmup: steps (1 or more) or a fraction of the run (less than 1) during which the factor rises from 0 to 1.
        arguments: further arguments of the schedule.

    Raises:
        InputError: ``warmup`` is negative, infinite or longer than the run (``E-WARMUP``), or there is no such schedule
            (``E-SCHEDULER``).
    """
    from transformers import SchedulerType, get_scheduler  # a quarter of a second with PEFT; `predict` needs neither

    if not 0 <= warmup < math.inf:
        raise InputError(
            "E-WARMUP", f"scheduler.warmup is {warmup}; give steps (1 or more) or a fraction of the run (below 1)"
        )
    steps = round(warmup * num_steps) if warmup < 1 else int(warmup)
    if steps > num_steps:
        raise InputError(
            "E-WARMUP", f"scheduler.warmup is {steps} steps, but the run has only {num_steps}; lower it or train longer"
        )
    if name not in (names := [kind.value for kind in SchedulerType]):
        hint = did_you_mean(name, names)
        raise InputError("E-SCHEDULER", f"scheduler.name is {name!r}.{hint} Possible: {', '.join(names)}")
    made: LRScheduler = get_scheduler(name, optimizer, steps, num_steps, scheduler_specific_kwargs=arguments or {})
    return made


def delayed(scheduler: LRScheduler, num_steps: int) -> LRScheduler:
    """``scheduler``, but with a learning rate of 0 for each group before its ``start``, if it has one.

    At a learning rate of 0 a step changes no bit of a parameter, neither by its gradient nor by weight decay, which is
    proportional to the rate.

    Args:
        num_steps: optimizer steps of the whole run.

    Raises:
        InputError: a group starts late and the schedule does not multiply the group's rate (``E-SCHEDULER``).
    """
    optimizer = scheduler.optimizer
    starts = [round(group.get("start", 0.0) * num_steps) for group in optimizer.param_groups]
    if not any(starts):
        return scheduler
    if not isinstance(scheduler, LambdaLR):
        raise InputError(
            "E-SCHEDULER",
            f"adapter.gradual needs a schedule that multiplies each group's rate; {type(scheduler).__name__} does not. "
            "Take scheduler=linear, cosine or constant",
        )
    return LambdaLR(optimizer, [_from(*pair) for pair in zip(starts, scheduler.lr_lambdas, strict=True)])


def scheduled(optimizer: Optimizer, scheduler: Callable[[Optimizer, int], LRScheduler] | None, trainer: Trainer) -> Any:
    """The optimizer with its schedule, in the form that Lightning takes from ``configure_optimizers``.

    Raises:
        InputError: there is a schedule, but the run has no end (``E-STEPS``).
    """
    if scheduler is None and not any("start" in group for group in optimizer.param_groups):
        return optimizer
    num_steps = trainer.estimated_stepping_batches
    if num_steps == float("inf"):
        raise InputError(
            "E-STEPS", "a schedule needs to know where the run ends; set trainer.max_epochs or trainer.max_steps"
        )
    made = (scheduler or partial(schedule, name="constant"))(optimizer, int(num_steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": delayed(made, int(num_steps)), "interval": "step"},
    }


def follow(scheduler: LRScheduler, *, at: int | None = None) -> None:
    """Set each group's rate to the present value of its schedule; the saved rate is wrong if the run is longer now.

    Args:
        at: the step at which the schedule stands; the saved one if None.
    """
    if isinstance(scheduler, LambdaLR):
        scheduler.last_epoch = scheduler.last_epoch if at is None else at
        groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, rate, factor in groups:
            group["lr"] = rate * factor(scheduler.last_epoch)


def _from(start: int, factor: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: factor(step) if step >= start else 0.0


def _as(parameter: Tensor, value: Any) -> Any:
    """A value of a parameter's state, sharded over processes as the parameter is."""
    return sharded_as(value, parameter) if isinstance(value, Tensor) else value


def by_name(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict with parameter names instead of positions: layer order may change between runs."""
    groups = [{**group, "params": group["param_names"]} for group in state["param_groups"]]
    names = [name for group in groups for name in group["params"]]
    return {"state": {names[position]: values for position, values in state["state"].items()}, "param_groups": groups}


def by_position(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `by_name`, a hook that runs before every ``load_state_dict`` of ``optimizer``.

    Raises:
        InputError: the saved state has other parameters or other groups (``E-OPTIMIZER-STATE``).
    """
    saved = {frozenset(group["params"]): group for group in state["param_groups"]}
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    for group in optimizer.param_groups:
        names = group["param_names"]
        if frozenset(names) not in saved:
            raise InputError(
                "E-OPTIMIZER-STATE", f"the checkpoint has no optimizer group of exactly {', '.join(names[:3])}, ..."
            )
        positions = range(len(states), len(states) + len(names))
        groups.append({**saved[frozenset(names)], "params": list(positions), "param_names": names})
        for position, name, parameter in zip(positions, names, group["params"], strict=True):
            states[position] = {key: _as(parameter, value) for key, value in state["state"].get(name, {}).items()}
    if len(saved) > len(groups):
        raise InputError(
            "E-OPTIMIZER-STATE", f"the checkpoint has {len(saved)} optimizer groups, this run has {len(groups)}"
        )
    return {"state": {position: values for position, values in states.items() if values}, "param_groups": groups}
