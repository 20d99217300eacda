"""``task.batch_norm=auto``: a trial decides before a run begins, and its answer is saved as the run's setting.

Training with statistics of the data in place of the base's gains where the base has seen little (Li et al., 2016,
https://arxiv.org/abs/1603.04779), and costs many points where it has seen much. There a linear probe of the base's
features is worse with statistics of the data, too.
"""

import math
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from loralight.artifacts.export import adapter_folder, read_recipe
from loralight.commands.trial import Trial, free_device
from loralight.config.build import task_node
from loralight.logs import show
from loralight.training.epochs import AUTO
from loralight.training.launch import process_rank
from loralight.training.probe import NoProbe, fitted, linear_head

_ROWS = 600  # of each split: fewer decide by chance, more take longer than a tenth of a short run
_BATCH = 64  # rows at most, of which a norm takes mean and variance
_FEWEST = 16  # below, statistics of batches cost accuracy (Wu and He, 2018, https://arxiv.org/abs/1803.08494, Fig. 1)


def with_batch_norm(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A run's config and overrides, with what was decided for ``task.batch_norm=auto``.

    A run that starts at another one (``init=``) has the other's setting, as its weights belong to it. The rows of the
    trial do not depend on the seed, so that runs over several seeds are alike.
    """
    if config["task"].get("batch_norm") != AUTO:
        return config, overrides
    chosen, why = _decide(config)
    if why and process_rank() in (None, 0):
        show(f"task.batch_norm=auto: {chosen}, {why}")
    kept = [override for override in overrides if override.lstrip("+").partition("=")[0] != "task.batch_norm"]
    return {**config, "task": {**config["task"], "batch_norm": chosen}}, [*kept, f"task.batch_norm={chosen}"]


def _decide(config: dict[str, Any]) -> tuple[str, str | None]:
    """What frozen BatchNorm layers do, and a reason; None if the model has no such layers."""
    if config["init"] is not None:
        made = read_recipe(adapter_folder(config["init"]))["task"]["arguments"]
        return made.get("batch_norm", "frozen"), f"as in {config['init']}"
    if process_rank() is not None:
        return "frozen", "as processes that torchrun or srun has started could decide differently"
    try:
        trial = Trial({**config, "task": task_node(config)})
        if not trial.task.frozen_norms:
            return "frozen", None
        if trial.data.batch_size < _FEWEST:
            return "frozen", f"as {trial.data.batch_size} rows are too few for statistics of a batch"
        with trial.task.unaccelerated():
            base, new = _losses(trial)
    except NoProbe as reason:
        return "frozen", f"as there is no linear probe to decide by: {reason}"
    finally:
        free_device()
    losses = (
        f"the loss of a linear probe is {new.mean():.3f} with the data's statistics, {base.mean():.3f} with the base's"
    )
    lost = new - base
    is_worse = float(lost.mean()) > float(lost.std()) / math.sqrt(len(lost))
    return ("frozen" if is_worse else "statistics"), losses


def _losses(trial: Trial) -> tuple[Tensor, Tensor]:
    """The loss of a linear probe on each validation row, with the base's statistics and with those of the data.

    The data's statistics stay in the trial's model.

    Raises:
        NoProbe: there can be none.
    """
    task, device, layer = trial.task, trial.device, linear_head(trial.task)
    train, held_out = _batches(trial.data.train_dataloader()), _batches(trial.data.val_dataloader())
    _, base = fitted(task, layer, train, held_out, device)
    _estimate_statistics_(trial, train)
    _, new = fitted(task, layer, train, held_out, device)
    return base, new


@torch.no_grad()
def _estimate_statistics_(trial: Trial, batches: list[Any]) -> None:
    """Give frozen BatchNorm layers the mean of the statistics of these batches."""
    norms = [norm for norm in trial.task.frozen_norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages all batches
        norm.train()
    for batch in batches:
        trial.task.step(move_data_to_device(batch, trial.device))
    for norm in norms:
        norm.eval()


def _batches(loader: DataLoader[Any]) -> list[Any]:
    """Batches of rows spread over a split, whose neighbours are alike; the same for each seed."""
    rows: Any = loader.dataset
    step = math.ceil(len(rows) / _ROWS)
    apart = math.ceil(len(rows) / step / _BATCH) * step  # rows of a batch, so that each has all classes
    return [
        loader.collate_fn([rows[number] for number in range(start, len(rows), apart)])
        for start in range(0, apart, step)
    ]
