"""How close a merged model is to the adapted model: ``merge_certificate.json``, a public format.

Its keys are explained in ``docs/merging.md``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from rich.table import Table
from torch import Tensor, nn

from loralight.adapters.disabled import is_off
from loralight.adapters.inject import Mergeable, merge, mergeable
from loralight.data import TaskData
from loralight.models.quantisation import QuantisedLinear
from loralight.training.step import Step
from loralight.training.task import AdapterTask

CERTIFICATE = "merge_certificate.json"
PROBED = "validation"  # the split that every data module has
_ROWS = 16
_VALUES = 2**20  # most values kept of an output of a row: a language model has 50,000 for each token


def probe_rows(data: TaskData) -> list[int]:
    """Rows of validation on which both models are compared, spread over the whole split as it may be sorted."""
    count = len(data.splits[PROBED])
    return list(range(0, count, -(-count // _ROWS)))


@torch.no_grad()
def outputs(task: AdapterTask, data: TaskData, rows: Sequence[int]) -> list[list[Tensor]]:
    """The model's outputs in a step on each row: floating-point tensors, flattened, and subsampled if long.

    Forward passes with the adapter `disabled` are left out, since a merged model has no base to return to. Each call
    seeds a row's step alike. If the task never calls the model as a whole, these are the step's predictions and loss.

    Args:
        task: in evaluation mode.
        data: the task's data, set up.
        rows: numbers of rows in the validation split; each row is a batch.
    """
    found: list[list[Tensor]] = []

    def look(model: nn.Module, _: Any, output: Any) -> None:
        if not is_off(model):
            apply_to_collection(output, Tensor, keep)

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            flat = tensor.detach().flatten()
            found[-1].append(flat[:: max(1, -(-flat.numel() // _VALUES))].cpu())
        return tensor

    for row in rows[:1]:
        _step(task, data, row)  # in its first step a task may try the model out
    hook = task.model.register_forward_hook(look)
    try:
        for row in rows:
            found.append([])
            made = _step(task, data, row)
            if not found[-1]:  # the task calls only parts of its model
                keep(made.predictions)
                keep(made.loss)
    finally:
        hook.remove()
    return found


@torch.no_grad()
def compares_with_base(task: AdapterTask, data: TaskData, row: int) -> bool:
    """Whether a step calls the model also with the adapter `disabled`: then loss and metrics need the base."""
    found: list[bool] = []
    hook = task.model.register_forward_pre_hook(lambda model, _: found.append(is_off(model)))
    try:
        _step(task, data, row)
    finally:
        hook.remove()
    return any(found)


def _step(task: AdapterTask, data: TaskData, row: int) -> Step:
    """A step on a row of the probed split alone, with a seed of its own."""
    torch.manual_seed(row)
    batch = data.collate([data.splits[PROBED][row]])
    return task.step(task.transfer_batch_to_device(batch, task.device, 0))


def difference(adapted: list[list[Tensor]], merged: list[list[Tensor]]) -> dict[str, float]:
    """The distance of the merged model's `outputs` from the adapted model's; the relative error is over the 2-norm."""
    # aligned at the last output: a task may try the model out before a step
    pairs = [pair for rows in zip(adapted, merged, strict=True) for pair in zip(*map(reversed, rows), strict=False)]
    before, after = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    gap = (after - before).abs()
    return {
        "max_abs_difference": float(gap.max()),
        "mean_abs_difference": float(gap.mean()),
        "relative_error": float(gap.norm() / before.norm().clamp(min=1e-300)),
        "max_abs_output": float(before.abs().max()),
        "values": gap.numel(),
    }


def merge_(model: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """Merge a model of float32 weights in place; returns the share of each layer's update that ``dtype`` would lose.

    Returns:
        ``||cast(W + D) - (W + D)|| / ||D||`` by the layer's name, in the Frobenius norm, for each layer whose update D
        is not zero. It is above 1 if rounding, including that of W, is larger than the update.

    Raises:
        InputError: the adapter is not a change of weights (``E-MERGE``).
    """
    lost = {}
    for name, layer in mergeable(model).items():
        if not isinstance(layer, Mergeable):
            continue  # the module around it merges it
        module = model.get_submodule(name)
        before = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
        if isinstance(module, QuantisedLinear):
            before["weight"] = module.weight
        layer.merge_()
        after = {key: p.detach() for key, p in module.named_parameters() if key in before}
        update = _norm([tensor - before[key] for key, tensor in after.items()])
        if update > 0:
            lost[name] = _norm([tensor.to(dtype).to(tensor.dtype) - tensor for tensor in after.values()]) / update
    merge(model)  # the remaining layers are PEFT's, which keep the plain layer as a submodule
    return lost


def _norm(tensors: list[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in tensors))


def lost_in_short(lost: dict[str, float]) -> dict[str, Any] | None:
    """The largest and mean loss of the layers' updates, and the layer with the largest; None for no layers."""
    if not lost:
        return None
    worst = max(lost, key=lost.__getitem__)
    return {"max": lost[worst], "mean": sum(lost.values()) / len(lost), "worst_layer": worst, "layers": lost}


def certificate_tables(certificate: dict[str, Any]) -> list[Table]:
    """The certificate as tables."""
    table = Table(title="merge certificate", title_justify="left", show_header=False)
    table.add_row("weights written in", certificate["dtype"])
    if (found := certificate["outputs"]) is None:
        table.add_row("outputs compared", "none: the run's data cannot be read")
    else:
        rows, split = certificate["probe"]["rows"], certificate["probe"]["split"]
        table.add_row("outputs compared", f"{found['values']:,}, on {len(rows)} rows of {split}")
        table.add_row("largest difference", f"{found['max_abs_difference']:.1e}")
        table.add_row("mean difference", f"{found['mean_abs_difference']:.1e}")
        table.add_row("largest output", f"{found['max_abs_output']:.3g}")
        table.add_row("relative error", f"{found['relative_error']:.1e} (tolerance {certificate['tolerance']:.1e})")
    if lost := certificate["update_lost"]:
        if lost["max"] == 0:
            table.add_row("lost of the updates", f"nothing in {len(lost['layers'])} layers")
        else:
            table.add_row("lost of the updates", f"{lost['mean']:.2%} on average over {len(lost['layers'])} layers")
            table.add_row("", f"{lost['max']:.2%} at most, in {lost['worst_layer']}")
    if certificate["folded_batch_norms"]:
        table.add_row("BatchNorm layers folded", str(certificate["folded_batch_norms"]))
    if certificate["settled"]:
        table.add_row("beside its plain logits", ", ".join(certificate["settled"]))
    if certificate["compares_with_base"]:
        table.add_row("metrics", "none: they need the base, which a merged model no longer has")
    if (metrics := certificate["metrics"]) is None:
        return [table]
    scores = Table(title="metrics", title_justify="left")
    for column in ("metric", "adapted", "merged"):
        scores.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in sorted(metrics["adapted"].items()):
        scores.add_row(name, f"{value:.4f}", f"{metrics['merged'][name]:.4f}")
    return [table, scores]
