"""The base class of every task: it owns freezing, training steps and the content of checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import loralight  # imports functions of higher packages on first use
from loralight.acceleration.base import Acceleration, Accelerations, Facts
from loralight.adapters.base import Adapter, check_adapter
from loralight.adapters.inject import inject
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.models.dtypes import single_by_default, tensors_of
from loralight.models.fresh import watching_origins
from loralight.models.quantisation import quantised_
from loralight.models.shards import inference_on, part, whole_in_first
from loralight.training.arguments import remembering
from loralight.training.broadcasts import spare_frozen_buffers_
from loralight.training.checkpoint import read_checkpoint
from loralight.training.contract import Contract
from loralight.training.evaluation_mode import SharedEvaluation
from loralight.training.frozen_modes import BatchNormMode, FrozenModes, choose_modes_
from loralight.training.gathering import training_together
from loralight.training.heads import HeadSettings, head_rate, start_bias_
from loralight.training.hooks import check_steps, refuse_overriding
from loralight.training.learning import Learning
from loralight.training.optim import (
    by_name,
    by_position,
    check_partial,
    leave_unscaling_,
    parameter_groups,
    scheduled,
)
from loralight.training.ownership import check_head, refuse_new_and_frozen, refuse_parameters_outside
from loralight.training.position import Position
from loralight.training.precision import is_scaled, new_tensors_stay_wide
from loralight.training.results import Results
from loralight.training.seeding import seed_step
from loralight.training.step import EpochLoss, Step, Window, weight_of
from loralight.training.unread import unread_layers
from loralight.training.watch import Watch
from loralight.training.whereabouts import place_of_step

__all__ = ["AdapterTask", "Step"]

Split = Literal["train", "validation", "test"]


class AdapterTask(lightning.LightningModule, Contract):
    """A pretrained model, an adapter, and how to train the model with the adapter.

    A task builds the model (`build_model`), names its new parts (`head`), computes a loss (`step`), defines `metrics`
    and predicts (`predict_batch`). The base class injects the adapter, freezes the rest and keeps it frozen, makes the
    optimizer's groups, logs, and writes checkpoints of exactly the trainable tensors.

    Args:
        adapter: the method of fine-tuning.
        optimizer: makes an optimizer from parameter groups; a `functools.partial` whose keywords hold ``lr``. Only
            needed to train.
        scheduler: makes a learning-rate schedule from (optimizer, number of steps); constant if None.
        head_start: initial weights of the head: ``random``, or the linear ``probe`` of the training rows, if there
            is one.
        head_lr: learning rate of the head per step; the optimizer's if None. ``auto`` takes a rate that suits a linear
            layer, and the optimizer's for any other head.
        head_weight_decay: weight decay of the head; the optimizer's if None.
        base_dropout: whether dropout in frozen layers stays on in training.
        quantize: how frozen weights of linear layers are stored in 8 or 4 bits, as a name in
            `loralight.models.quantisers.QUANTISERS`; not quantised if None.
        batch_norm: treatment of frozen BatchNorm layers: unchanged (``frozen``), new running ``statistics``, or a
            trainable ``affine`` part. All that changes is saved with the adapter.
        accelerations: ways to compute the same in less time or memory, by name; each is used where it applies.
        seed: seeds every training step, together with rank, epoch and batch, so that a resumed run repeats the steps
            of an uninterrupted run.

    Raises:
        TypeError: a subclass is defined that overrides a hook of this class.
    """

    learning: Learning
    results: Results
    arguments: dict[str, Any]
    """The plain-data arguments of the constructor: saved with the adapter, and used to build the task on loading."""

    @remembering
    def __init__(
        self,
        *,
        adapter: Adapter,
        optimizer: partial[Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        head_start: Literal["random", "probe"] = "random",
        head_lr: float | Literal["auto"] | None = None,
        head_weight_decay: float | None = None,
        base_dropout: bool = True,
        quantize: str | None = None,
        batch_norm: BatchNormMode = "frozen",
        accelerations: Mapping[str, Acceleration] = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_adapter(adapter)
        check_partial(optimizer)
        self.head_settings = HeadSettings(start=head_start, lr=head_lr, weight_decay=head_weight_decay)
        self.adapter, self.optimizer, self.scheduler = adapter, optimizer, scheduler
        self.base_dropout, self.batch_norm, self.seed = base_dropout, batch_norm, seed
        self.accelerations = Accelerations(accelerations)
        self.quantize = quantize
        self.strict_loading = False  # Lightning would demand the frozen weights; `on_load_checkpoint` is strict
        self.adapted: dict[str, list[str]] = {}
        self.unread: list[str] = []  # layers that presets leave out because the loss never reads them
        self.settled: dict[str, Any] = {}  # the numbers of `settle`, see `loralight.training.settling`
        self._built = False
        self._split: Split | None = None
        self._evaluation = SharedEvaluation()
        self._fresh: set[str] = set()  # names of the parameters that the pretrained weights do not have
        self._modes = FrozenModes()
        self.steps_ahead = 0  # by how much schedules are ahead of the steps done, see `Position`
        self._window = Window()
        self._epoch_loss = EpochLoss()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = remembering(cls.__init__)  # type: ignore[method-assign]
        refuse_overriding(cls, AdapterTask)

    def save(self, folder: str | Path) -> None:
        """Write the adapter and a recipe that loads it again: `loralight.save_task`."""
        loralight.save_task(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", **arguments: Any) -> Self:
        """A task of this class with the adapter that `save` wrote, in evaluation mode: `loralight.load_task`."""
        return loralight.load_task(cls, folder, device=device, **arguments)

    def check_built(self) -> None:
        """Raise ``E-UNBUILT`` if there is no model yet."""
        if not self._built:
            raise InputError(
                "E-UNBUILT",
                f"this {type(self).__name__} has no model yet: train it, load one, or call configure_model()",
            )

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32, **options: Any) -> list[dict[str, Any]]:
        """Predictions for ``inputs``, in their order, with dropout off.

        Any number of threads may call this at once, but not while the model is being trained.

        Args:
            inputs: as the task takes them.
            batch_size: inputs at a time.
            options: the keyword arguments of the task's ``predict_batch``.

        Raises:
            InputError: ``inputs`` is not a list, or an input is not of the right kind (``E-INPUT``), or ``batch_size``
                is less than 1 (``E-BATCH``).
        """
        self.check_built()
        if isinstance(inputs, str | Mapping):
            raise InputError("E-INPUT", f"{inputs!r}: give a list of inputs, even if it is only one")
        if batch_size < 1:
            raise InputError("E-BATCH", f"batch_size is {batch_size}; give at least 1")
        with self.evaluating(), inference_on(self.model):
            batches = (inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size))
            return [answer for batch in batches for answer in self.predict_batch(batch, **options)]

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode, until the last thread has left this context; then the mode before the first entered."""
        return self._evaluation.of(self)

    @contextmanager
    def unaccelerated(self) -> Iterator[None]:
        """Evaluation mode without accelerations: each token and layer is computed, whoever reads it."""
        with self.accelerations.set_aside(self._facts()), self.evaluating():
            yield
        self.accelerations.switch_(self.training)

    def configure_model(self) -> None:
        """Build the model and inject the adapter, on the first call only; a trainer gets the callback `Position`."""
        callbacks: list[Any] | None = getattr(self._trainer, "callbacks", None)  # None without a trainer
        if callbacks is not None and not any(isinstance(callback, Position) for callback in callbacks):
            callbacks.insert(0, Position())  # before callbacks that may write checkpoints
        if self._built:
            return
        self._build_()
        while self.optimizer is not None and self._leaves_out_unread():
            self._build_()
        self.train()  # `from_pretrained` returns eval mode, and Lightning keeps the mode it finds
        self.accelerations.attach_(self._facts())  # in training mode, as in training
        self.accelerations.switch_(True)
        spare_frozen_buffers_(self, {f"model.{name}" for name in self.trainable_tensors()})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors into the model, built first if need be: a notebook trains in other processes and sends them."""
        self.configure_model()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _build_(self) -> None:
        with self._base() as (self.model, head):
            base = {id(tensor) for tensor in tensors_of(self.model).values()}
            self.adapted = inject(self.model, self.adapter, head=head, will_train=False)  # checked by _base
        added = {name for name, tensor in tensors_of(self.model).items() if id(tensor) not in base}
        layers = [name for names in self.adapted.values() for name in names]
        self.choose_modes_()
        norms = self.adapted_norms
        self.learning = Learning(self.model, head=head, layers=layers + norms, norms=norms, added=added)
        refuse_new_and_frozen(self.fresh(self.model), self.model)
        refuse_parameters_outside(self, self.model)
        self.results = Results(self.metrics(), of=type(self).__name__)
        self._built = True

    def _leaves_out_unread(self) -> bool:
        """Replace the adapter by one without preset layers that the loss never reads; returns False if all are read."""
        self.train()
        unread = unread_layers(self.model, self.learning, self.adapter, self.adapted, self._tiny_loss)
        other = self.adapter.without(unread) if unread else None
        if other is None:
            return False
        self.adapter, self.unread, self._built = other, unread, False
        del self.model
        return True

    def _tiny_loss(self) -> Tensor | None:
        batch = self.tiny_batch()
        device = next(self.model.parameters()).device
        return None if batch is None else self.step(move_data_to_device(batch, device)).loss

    @contextmanager
    def _base(self) -> Iterator[tuple[nn.Module, Sequence[nn.Module]]]:
        """The model to adapt and its head, in the context in which an adapter is injected."""
        with single_by_default():
            with watching_origins() as origins:
                model = self.build_model()
            self._fresh = origins.fresh(model)
            head = check_head(model, self.head(model), type(self).__name__)
            start_bias_(model, head, fresh=self._fresh, answer=self.constant_answer())
            if self.optimizer is not None:
                self.adapter.check_training(model)
            with quantised_(model, self.quantize, head=head):
                yield model, head

    def build_base(self) -> nn.Module:
        """A new copy of the base model without the adapter: frozen, in evaluation mode."""
        with self._base() as (model, _):
            pass
        return model.requires_grad_(False).eval()

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Trainable parameters, and saved buffers of the modules that hold them, by name in ``self.model``."""
        return self.learning.tensors()

    def load_trainable(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Load exactly the `trainable_tensors`; see `Learning.load_`."""
        self.learning.load_(tensors, origin)

    def make_optimizer(self) -> Optimizer:
        """The optimizer over the trainable parameters, with its groups."""
        if self.optimizer is None:
            raise TypeError(f"{type(self).__name__} was built without an optimizer; pass one to train")
        groups = parameter_groups(
            self.model,
            self.adapter,
            lr=self.optimizer.keywords["lr"],
            head=self.learning.head,
            head_lr=head_rate(self.head_settings.lr, self.learning.head),
            head_weight_decay=self.head_settings.weight_decay,
        )
        optimizer: Optimizer = self.optimizer(groups)
        leave_unscaling_(optimizer)
        return optimizer

    def start_accelerations_(self, data: Any = None, folder: Path | None = None) -> None:
        """Start the accelerations that need to know the device and dtypes of training.

        Args:
            data: the run's data; ignored if it is not a `TaskData`.
            folder: the run's folder, if a run begins.
        """
        self.accelerations.start_(self._facts(data=data if isinstance(data, TaskData) else None, folder=folder))

    def _facts(self, **of_run: Any) -> Facts:
        return Facts(model=self.model, still=self._modes.still, fixed=self._modes.fixed, **of_run)

    def configure_optimizers(self) -> Any:
        check_steps(self, self.updates_per_batch)
        self.start_accelerations_(self.trainer.datamodule, Path(self.trainer.default_root_dir))  # type: ignore[attr-defined]
        optimizer = self.make_optimizer()
        self._watch = Watch(self.model, self.learning, optimizer)
        optimizer.register_load_state_dict_pre_hook(by_position)
        return scheduled(optimizer, self.scheduler, self.trainer)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the task; the adapter's own tensors and the head stay in float32, so small updates are kept."""
        if not self._built:
            return super().to(*args, **kwargs)
        with new_tensors_stay_wide(self, self.model, self.learning):
            return super().to(*args, **kwargs)

    def train(self, mode: bool = True) -> "AdapterTask":
        """Training mode, except for frozen modules that stay in evaluation mode (``batch_norm``, ``base_dropout``)."""
        super().train(mode)
        if mode and self._built:
            self._modes.keep_()
        self.accelerations.switch_(mode)
        return self

    def choose_modes_(self) -> None:
        """Choose the modules that stay in evaluation mode during training."""
        head = self.head(self.model)
        self._modes = choose_modes_(self.model, head, base_dropout=self.base_dropout, batch_norm=self.batch_norm)
        if self._modes.adapted_norms:
            self.adapted[f"(BatchNorm {self.batch_norm})"] = self.adapted_norms

    @property
    def frozen_norms(self) -> list[nn.Module]:
        """The BatchNorm layers in which nothing changes."""
        return list(self._modes.fixed)

    @property
    def adapted_norms(self) -> list[str]:
        """Names of the BatchNorm layers that `batch_norm` lets change."""
        return list(self._modes.adapted_norms)

    @property
    def split(self) -> Split:
        """The split of the batch that `step` gets; without a trainer, ``train`` in training mode, else validation."""
        return self._split or ("train" if self.training else "validation")

    @contextmanager
    def _of(self, split: Split) -> Iterator[None]:
        self._split = split
        try:
            yield
        finally:
            self._split = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        place = {"rank": self.global_rank, "epoch": self.current_epoch, "batch": batch_idx, "update": self.update}
        seed_step(self.seed, **place, device=self.device)
        self._modes.keep_()  # a submodule's train() may have been called directly
        self.accelerations.switch_(True)
        stands_in = self._stands_in(batch_idx)
        with self.accelerations.step(self.model), self._of("train"), training_together(counts=not stands_in):
            step = self.step(batch)
        weight, loss = weight_of(step), step.loss.detach()
        if stands_in:
            weight = torch.zeros_like(weight)
        self._window.add(loss, weight, self._summed)
        self.log("train/loss", loss, prog_bar=True)
        for name, value in step.numbers.items():
            self.log(f"train/{self.results.unused(name)}", torch.as_tensor(value).detach())
        penalty = self.adapter.penalty(self.model)
        if penalty is None:
            return step.loss * weight
        self.log("train/penalty", penalty.detach())
        return (step.loss + penalty) * weight

    def _summed(self, numbers: Tensor) -> Tensor:
        """Numbers summed over all ranks in place, without the barrier of Lightning's `reduce`: there a GPU waits."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def _stands_in(self, batch_idx: int) -> bool:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return isinstance(data, TaskData) and data.stands_in(self.current_epoch, batch_idx)

    @property
    def epoch_loss(self) -> float:
        """Mean training loss over all items of the epoch so far, on all ranks, up to the last optimizer step."""
        return self._epoch_loss.mean

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale the gradient of the summed loss to that of the mean over all items, ranks and accumulated batches."""
        loss, weight = self._window.take()
        self._epoch_loss.add(loss, weight)
        if self.global_step == 0:
            refuse_parameters_outside(self, self.model)
            self._watch.begin(self.adapter, self.adapted)
        # Lightning has divided by the accumulated batches, DDP and FSDP2 by the ranks
        factor = self.trainer.world_size * self.trainer.accumulate_grad_batches / max(weight, 1e-12)
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        torch._foreach_mul_([part(gradient) for gradient in gradients if gradient is not None], factor)
        ranks = self._window.ranks_of_loss(loss, self.trainer.world_size, self.all_gather)
        place, scaled = place_of_step(self.trainer, ranks), is_scaled(self.trainer)
        self._watch.look_(gradients, loss=loss / max(weight, 1e-12), place=place, scaled=scaled)

    @property
    def told_to_stop(self) -> bool:
        """Whether any process was told to stop before the last optimizer step; the same in all processes."""
        return self._window.told_to_stop

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Make the step and the adapter's `after_step_`, before any callback can save a checkpoint."""
        num_steps = float(self.trainer.estimated_stepping_batches)
        for update in range(self.updates_per_batch):
            self.update = update
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            step = self.global_step + 1 + self.steps_ahead
            self.adapter.after_step_(self.model, step=step, num_steps=num_steps)
        self.update = 0

    def on_train_epoch_end(self) -> None:
        self._watch.end_epoch()
        refuse_parameters_outside(self, self.model)
        self.log("train/epoch_loss", self.epoch_loss, sync_dist=True)  # the same on all ranks already
        if self.trainer.is_last_batch:  # else a longer run may resume within the epoch
            self._epoch_loss = EpochLoss()

    def on_fit_end(self) -> None:
        self.accelerations.end_()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Measure a batch; its predictions, targets and arguments of metrics are passed to callbacks."""
        return self._measure("validation", batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As `validation_step`."""
        return self._measure("test", batch)

    def _measure(self, split: Split, batch: Any) -> dict[str, Any]:
        with self._of(split):
            step = self.step(batch)
        loss, scores, means = self.results.update_(split, step)
        self.log(f"{split}/loss", loss, on_epoch=True)
        self.log_dict(scores, on_epoch=True)
        for name, mean in means.items():
            self.log(f"{split}/{name}", mean, on_epoch=True, metric_attribute=f"results.means.{split}.{name}")
        return {"predictions": step.predictions, "targets": step.targets, "arguments": step.arguments}

    @property
    def scores(self) -> nn.ModuleDict:
        """The task's `metrics` of validation and of test, in their present states."""
        return self.results.scores

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's method has other arguments
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu", **arguments: Any
    ) -> Self:
        """A task with the trainable tensors of a checkpoint.

        Args:
            checkpoint_path: a folder that ``loralight train`` wrote (``checkpoints/best`` in a run's), or a file that
                Lightning wrote.
            map_location: the device of the task.
            arguments: the constructor's, as in training; saved hyperparameters need not be given.

        Raises:
            InputError: the checkpoint cannot be read (``E-CKPT-HASH``, ``E-CKPT-STATE``), or belongs to another model
                or adapter (``E-ADAPTER-KEYS``).
        """
        checkpoint = read_checkpoint(Path(checkpoint_path))
        task = cls(**{**checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **arguments})
        task.configure_model()
        task.on_load_checkpoint(checkpoint)
        return task.to(map_location)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trainable tensors, and the optimizer's state by parameter name, as layer order may change."""
        tensors = self.trainable_tensors().items()
        checkpoint["state_dict"] = {name: whole_in_first(tensor, self.global_rank) for name, tensor in tensors}
        checkpoint["epoch_sums"] = self._epoch_loss.sums
        checkpoint["optimizer_states"] = [by_name(state) for state in checkpoint.get("optimizer_states", [])]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.load_trainable(checkpoint["state_dict"], "the checkpoint")
        self._epoch_loss.load_(checkpoint.get("epoch_sums"))
        checkpoint["state_dict"] = {}
