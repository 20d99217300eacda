"""A linear probe: the best linear classifier on the features of a frozen model.

It takes one pass over the training rows and a convex problem, in seconds. It shows how much a base model knows before
it is fine-tuned (Alain and Bengio, 2016, https://arxiv.org/abs/1610.01644). It serves as the baseline, as
``adapter=linear_probe``, and as a starting point for a head (Kumar et al., 2022, https://arxiv.org/abs/2202.10054).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from loralight import logs
from loralight.data import TaskData
from loralight.training.epochs import num_batches
from loralight.training.fully_shard import FullyShard
from loralight.training.heads import linear_layer
from loralight.training.launch import process_rank
from loralight.training.settling import settled
from loralight.training.step import Step, measure_
from loralight.training.task import AdapterTask

_MOST_NUMBERS = 20_000_000  # in the features, such as 52,000 items of width 384; more change only the third digit
_LEAST_ITEMS = 2_000  # taken whatever their width
_DECAYS = (10.0, 1.0, 1e-1, 1e-2, 1e-3)  # of standardised features; the validation rows choose
_ITERATIONS = 50  # of L-BFGS for each


@dataclass(frozen=True)
class Classifier:
    """The parameters of a linear layer: weight (labels, width) and bias (labels,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (items, labels) of features (items, width)."""
        return F.linear(features, self.weight, self.bias)


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Args:
        classifier: stands in for the head's linear layer.
        scores: the task's metrics with it, such as ``validation/accuracy``.
    """

    classifier: Classifier
    scores: dict[str, float]


class NoProbe(Exception):  # noqa: N818  # nothing went wrong
    """Why a task's head has no probe."""


def fit_probe(task: AdapterTask, data: TaskData, trainer: lightning.Trainer) -> Probe:
    """Fit a probe to the training rows, choose its weight decay by the validation rows, and measure it.

    The model is unchanged after this, and in training mode.

    Args:
        task: with its model built.
        data: set up.
        trainer: gives the device and the limits on the batches of each split.

    Raises:
        NoProbe: the head is not one linear layer, its targets are not classes, the rows are too few or too alike,
            or the model's weights are to be sharded over processes.
    """
    if isinstance(trainer.strategy, FullyShard):
        raise NoProbe("its pass would take the whole model on each device (trainer=fsdp)")
    layer, device = linear_head(task), trainer.strategy.root_device
    logs.logger.info("fitting a linear probe on what the frozen model makes of the rows (probe=false leaves it out)")
    task.to(device).eval()
    try:
        splits = {"validation": _some(data.val_dataloader(), trainer.limit_val_batches)}
        if "test" in data.splits and trainer.limit_test_batches:
            splits["test"] = _some(data.test_dataloader(), trainer.limit_test_batches)
        train = _some(data.train_dataloader(), trainer.limit_train_batches)
        best, held_out = _fitted(task, layer, train, splits["validation"], device)
        with _in_place(layer, best):
            known = {"validation": held_out.steps_with(best)}

            def steps(split: str) -> Iterable[Step]:
                return known.get(split) or _steps(task, splits[split], device)

            with settled(task, task.settle(lambda: _outputs(steps("validation")))):
                scores = {name: score for split in splits for name, score in _score(task, split, steps(split), device)}
    finally:
        task.train()
    return Probe(best, scores)


def fitted(
    task: AdapterTask, layer: nn.Linear, train: Iterable[Any], held_out: Iterable[Any], device: torch.device
) -> tuple[Classifier, Tensor]:
    """The best linear classifier of the inputs of a head, and its loss on each held-out item, (items,).

    Args:
        task: in evaluation mode, on the device.
        layer: the head, see `linear_head`.
        train: batches to fit.
        held_out: batches that choose the weight decay.
        device: for the features; the classifier is on the CPU.

    Raises:
        NoProbe: the targets are not classes, or the rows are too few or too alike.
    """
    best, items = _fitted(task, layer, train, held_out, device)
    return best, _losses(best.logits(items.features), items.targets)


def fit_probe_once(task: AdapterTask, data: TaskData, trainer: lightning.Trainer) -> Probe:
    """As `fit_probe`, in the first of several processes alone, from which the others get it.

    They meet only then: before, scores would be summed over all processes.
    """
    if trainer.world_size == 1 or isinstance(trainer.strategy, FullyShard):
        return fit_probe(task, data, trainer)
    found: Probe | NoProbe | None = None
    if process_rank() == 0:
        try:
            found = fit_probe(task, data, trainer)
        except NoProbe as reason:
            found = reason
    trainer.strategy.setup_environment()
    found = trainer.strategy.broadcast(found)
    if isinstance(found, NoProbe):
        raise found
    assert found is not None
    return found


@dataclass(frozen=True)
class _Items:
    """The inputs of a head on the rows of a split, on the CPU.

    Args:
        features: (items, width), in float32.
        targets: see `fit`.
        steps: the task's step on each batch, if they are kept, no row is left out, and predictions are nothing but the
            head's outputs; else None.
    """

    features: Tensor
    targets: Tensor
    steps: list[Step] | None

    def steps_with(self, classifier: Classifier) -> list[Step] | None:
        """The steps with the predictions that ``classifier`` gives, without a second pass over the rows.

        Losses stay those of the head.
        """
        if self.steps is None:
            return None
        logits = torch.split(classifier.logits(self.features), [len(step.predictions) for step in self.steps])
        return [
            step._replace(predictions=own.to(step.predictions)) for step, own in zip(self.steps, logits, strict=True)
        ]


def _fitted(
    task: AdapterTask, layer: nn.Linear, train: Iterable[Any], held_out: Iterable[Any], device: torch.device
) -> tuple[Classifier, _Items]:
    """As `fitted`, with the items of the held-out batches."""
    known, asked = _collect(task, layer, train, device), _collect(task, layer, held_out, device, keeps_steps=True)
    _refuse_useless(known.features, known.targets, asked.features, asked.targets, num_labels=layer.out_features)
    candidates = fit(known.features, known.targets, num_labels=layer.out_features)
    return _best(candidates, asked.features, asked.targets), asked


def _refuse_useless(features: Tensor, targets: Tensor, asked: Tensor, answers: Tensor, *, num_labels: int) -> None:
    """Raise `NoProbe` if a linear classifier of the rows would be arbitrary, or would lack a class of validation.

    More features than rows are allowed: with weight decay there is one best classifier.
    """
    if not (features.isfinite().all() and asked.isfinite().all()):
        raise NoProbe("the model's features are not all finite")
    if bool((targets == targets[0]).all()):
        raise NoProbe(
            "all training rows are of one class" if targets.ndim == 1 else "all training rows have one answer"
        )
    if targets.ndim == 1 and len(targets) < num_labels:
        raise NoProbe(f"{len(targets)} training rows are fewer than {num_labels} classes")
    unknown = int((_counts(answers, num_labels).bool() & ~_counts(targets, num_labels).bool()).sum())
    if unknown:
        raise NoProbe(f"{unknown} of {num_labels} classes are in validation and in no training row")
    if bool((features - features[0]).abs().max() <= 1e-5 * features.abs().max()):
        raise NoProbe("all training rows are alike to the model")


def _counts(targets: Tensor, num_labels: int) -> Tensor:
    return targets.bincount(minlength=num_labels) if targets.ndim == 1 else targets.sum(0)


def _some(loader: DataLoader[Any], limit: int | float) -> Iterable[Any]:
    """The batches that Lightning would take of a split under ``limit``; they can be iterated more than once."""
    count = num_batches(loader, limit)
    return loader if count == len(loader) else list(islice(loader, count))


def linear_head(task: AdapterTask) -> nn.Linear:
    """The linear layer that is a task's whole head.

    Raises:
        NoProbe: the head has more layers, or a layer without bias, or there is no head.
    """
    head = task.head(task.model)
    if not head:
        raise NoProbe("the task has no head")
    if (layer := linear_layer(head)) is None:
        raise NoProbe("the head is more than one linear layer")
    if layer.bias is None:
        raise NoProbe("the head's linear layer has no bias")
    return layer


def start_head_(task: AdapterTask, classifier: Classifier) -> None:
    """Start the head at ``classifier``."""
    _fill_(linear_head(task), classifier)


def fit(features: Tensor, targets: Tensor, *, num_labels: int) -> Iterator[Classifier]:
    """Logistic regressions from strong to weak weight decay, each started at the solution before.

    Features are standardised for the fit, so that a weight decay means the same for every model.

    Args:
        features: (items, width).
        targets: class numbers (items,), or 0 and 1 (items, labels).
        num_labels: number of outputs.
    """
    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    standard = (features - mean) / spread
    weight = torch.zeros(num_labels, features.shape[1], requires_grad=True)
    bias = torch.zeros(num_labels, requires_grad=True)
    for decay in _DECAYS:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure(decay: float = decay, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (
                _losses(F.linear(standard, weight, bias), targets).mean()
                + decay / 2 * weight.square().sum() / num_labels
            )
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        plain = weight.detach() / spread
        yield Classifier(plain, bias.detach() - plain @ mean)


def _best(candidates: Iterable[Classifier], features: Tensor, targets: Tensor) -> Classifier:
    """The last classifier before the loss on held-out rows rises, where weaker decay begins to overfit."""
    best, least = None, float("inf")
    for candidate in candidates:
        loss = float(_losses(candidate.logits(features), targets).mean())
        if best is not None and not loss < least:
            break
        best, least = candidate, loss
    assert best is not None
    return best


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each item the cross-entropy of its class, or the mean binary cross-entropy of its labels; (items,)."""
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


@torch.no_grad()
def _collect(
    task: AdapterTask, layer: nn.Linear, batches: Iterable[Any], device: torch.device, *, keeps_steps: bool = False
) -> _Items:
    """The items of some batches, cut to a maximum; their steps stay in the device's memory if they are kept."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_layer: nn.Module, given: tuple[Tensor], found: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(found)

    hook = layer.register_forward_hook(keep)
    features: list[Tensor] = []
    targets: list[Tensor] = []
    steps: list[Step] = []
    is_plain = keeps_steps  # and predictions are the head's outputs
    most, items = max(_LEAST_ITEMS, _MOST_NUMBERS // layer.in_features), 0
    try:
        for batch in batches:
            inputs.clear()
            outputs.clear()
            moved = move_data_to_device(batch, device)
            step = task.step(moved)
            given = task.probed(torch.cat(inputs), moved)
            if given is not None and given[0].ndim > 2:
                raise NoProbe("the head reads a vector for each token, and not one for each row")
            if given is None or not _are_classes(*given, layer.out_features):
                raise NoProbe("the targets of a step are no classes of the head's outputs")
            features.append(given[0].float().cpu())
            targets.append(given[1].cpu())
            items += len(given[1])
            if is_plain:
                found = task.probed(torch.cat(outputs), moved)
                is_plain = found is not None and torch.equal(found[0], step.predictions)
                steps.append(step)
            if items >= most:
                break
    finally:
        hook.remove()
    if not items:
        raise NoProbe("a split has no rows to fit or to choose it by")
    is_known = is_plain and items < most  # else there may be more batches
    return _Items(torch.cat(features)[:most], torch.cat(targets)[:most], steps if is_known else None)


def _are_classes(features: Tensor, targets: Tensor, num_labels: int) -> bool:
    if features.ndim != 2 or len(features) != len(targets):
        return False
    if targets.ndim == 1:
        return not targets.is_floating_point() and (not len(targets) or int(targets.max()) < num_labels)
    return targets.is_floating_point() and targets.shape[1:] == (num_labels,)


@torch.no_grad()
def _steps(task: AdapterTask, batches: Iterable[Any], device: torch.device) -> Iterator[Step]:
    for batch in batches:
        yield task.step(move_data_to_device(batch, device))


def _outputs(steps: Iterable[Step]) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all rows."""
    each = [(step.predictions, step.targets) for step in steps]
    predictions, targets = zip(*each, strict=True)
    return torch.cat(predictions).float(), torch.cat(targets)


def _score(task: AdapterTask, split: str, steps: Iterable[Step], device: torch.device) -> list[tuple[str, float]]:
    metrics = task.metrics().to(device)
    for step in steps:
        measure_(metrics, step)
    return [(f"{split}/{name}", float(value)) for name, value in metrics.compute().items()]


@contextmanager
def _in_place(layer: nn.Linear, classifier: Classifier) -> Iterator[None]:
    """A context in which ``layer`` has the weight and bias of ``classifier``."""
    before = Classifier(layer.weight.detach().clone(), layer.bias.detach().clone())
    _fill_(layer, classifier)
    try:
        yield
    finally:
        _fill_(layer, before)


@torch.no_grad()
def _fill_(layer: nn.Linear, classifier: Classifier) -> None:
    layer.weight.copy_(classifier.weight)
    layer.bias.copy_(classifier.bias)
