"""``trainer=fsdp``: each process holds a part of each weight, of its gradient and of its optimizer state.

This is PyTorch's `fully_shard` (FSDP2) through Lightning's strategy for it. A block's weights are gathered for its
forward pass, freed, and gathered again for its backward pass, so that a device holds one block at a time as a whole.
Checkpoints and adapters are those of any other run: what learns is gathered in the first process, which writes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from loralight.models.shards import is_sharded, whole_in_first
from loralight.training.fingerprint import fingerprint
from loralight.training.sharding import check_can_be_sharded, check_groups, never_sharded
from loralight.training.task import AdapterTask


class FullyShard(ModelParallelStrategy):
    """Shards a task's weights over all processes.

    Args:
        cpu_offload: whether the parts, their gradients and the optimizer's state lie in the memory of the machine, and
            only gathered blocks on the GPU; slower, for bases that do not fit even in parts.
    """

    def __init__(self, *, cpu_offload: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self._is_offloaded = cpu_offload
        self._most_batches = 0  # of a process, in the validation or test that runs

    @property
    def _task(self) -> AdapterTask:
        return cast(AdapterTask, self.lightning_module)

    def setup_environment(self) -> None:
        """Join the other processes: all of them shard, none computes a part of a layer."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        if self._is_offloaded and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # norms of gradients that lie in the machine's memory are summed too
        return super()._get_process_group_backend()

    def setup(self, trainer: lightning.Trainer) -> None:
        """Shard the task, at the first call alone."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if not is_sharded(self._task.model):
            self.suit_(self._task)
            self.precision_plugin.convert_module(self._task)
            self._shard_(self._task)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def shard_to_predict_(self, task: AdapterTask) -> None:
        """Join the other processes and shard a task, without a trainer.

        All processes then predict the same inputs, so that they take the same steps.

        Raises:
            InputError: see `check_can_be_sharded`.
        """
        self.connect(task)
        self.setup_environment()
        self.suit_(task)
        self._shard_(task)
        self.model_to_device()

    def suit_(self, task: AdapterTask) -> None:
        """Check that a task can be sharded, and leave out accelerations that cannot be used then.

        Raises:
            InputError: see `check_can_be_sharded`.
        """
        check_can_be_sharded(task)
        task.accelerations.leave_whole_weights_(task.model)

    def _shard_(self, task: AdapterTask) -> None:
        task.learning.base = fingerprint(task)  # of whole weights, which no process has later
        policy = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
        settings: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "offload_policy": policy if self._is_offloaded else OffloadPolicy(),
            "ignored_params": never_sharded(task),
            "reshard_after_forward": True,
        }
        apart = task.gathered_apart(task.model)
        check_groups(apart, task.model)
        for parameter in task.parameters():
            parameter.data = parameter.data.contiguous()  # as `fully_shard` demands
        for block in apart:
            fully_shard(block, **settings)
        fully_shard(task, **settings)
        for method in ("step", "predict_batch"):  # by which all weights outside the blocks are used
            register_fsdp_forward_method(task, method)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        trainer = self._task.trainer
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return self._keeping_step(super().validation_step, counts, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._keeping_step(super().test_step, self._task.trainer.num_test_batches, *args, **kwargs)

    def _keeping_step(
        self, measure: Callable[..., Any], counts: Sequence[int | float], batch: Any, number: int, loader: int = 0
    ) -> Any:
        """Measure a batch; after its last one a process with fewer batches takes part in gathering weights for others.

        It computes its last batch again and forgets the results.
        """
        own = int(counts[loader])
        if number == 0:
            self._most_batches = int(self.reduce(torch.tensor(own, device=self.root_device), reduce_op="max"))
        measured = measure(batch, number, *([loader] if loader else []))
        if number + 1 == own:
            with self.precision_plugin.val_step_context():
                for _ in range(self._most_batches - own):
                    self._task.step(batch)
        return measured

    def model_to_device(self) -> None:
        """Move what is not sharded, such as metrics; the parts are where they belong."""
        task = self._task
        if not self._is_offloaded:
            task.to(self.root_device)
            return
        for child in (child for child in task.children() if child is not task.model):
            child.to(self.root_device)
        _update_properties(task, device=self.root_device)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state with whole tensors, in the first process."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        gathered = {
            number: {name: self._in_first(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": gathered}

    def _in_first(self, value: Any) -> Any:
        return whole_in_first(value, self.global_rank) if isinstance(value, Tensor) else value

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # the task adds what learns

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # what learns is read before it is sharded, and before callbacks begin the run

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
