"""One object names what learns; optimizer, checkpoint, export and watches agree with it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from loralight.adapters import AdaLora, Lora
from loralight.errors import InputError
from loralight.training.gradients import layer_of
from loralight.training.task import AdapterTask, Step


class Small(AdapterTask):
    def build_model(self) -> nn.Module:
        body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        return nn.ModuleDict({"body": body, "head": nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))})

    def head(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule("head")]

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def step(self, batch: Any) -> Step:
        raise NotImplementedError

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        raise NotImplementedError


def built(**arguments: Any) -> Small:
    lora = Lora(targets=["body.0"], rank=2)
    task = Small(**{"adapter": lora, "optimizer": partial(torch.optim.SGD, lr=0.1), **arguments})
    task.configure_model()
    return task


HEAD = {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def test_it_names_parameters_tensors_modules_and_layers() -> None:
    learning = built(batch_norm="statistics").learning
    assert learning.parameters.keys() == {"body.0.lora_A", "body.0.lora_B"} | HEAD
    buffers = {f"{norm}.{name}" for norm in ("body.1", "head.0") for name in STATISTICS}
    assert learning.tensors().keys() == learning.parameters.keys() | buffers
    assert learning.whole_modules == ["head", "body.1"]
    layers = [layer_of(name, learning.layers) for name in learning.parameters]
    assert layers == ["body.0", "body.0", "head", "head", "head", "head"]


def test_it_tells_what_is_new_from_the_base_s_own_weights() -> None:
    task = built(batch_norm="affine")
    assert {"body.1.weight", "body.1.bias"} <= task.learning.parameters.keys()
    new = {"body.0.lora_A", "body.0.lora_B"} | HEAD | {f"head.0.{name}" for name in STATISTICS}
    assert task.learning.new == new


def test_optimizer_and_checkpoint_hold_what_it_names() -> None:
    task = built(batch_norm="affine")
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    optimized = {name for group in task.make_optimizer().param_groups for name in group["param_names"]}
    assert optimized == task.learning.parameters.keys()
    assert checkpoint["state_dict"].keys() == task.learning.tensors().keys() == task.trainable_tensors().keys()


def test_it_follows_a_method_that_ends_as_another() -> None:
    task = built(adapter=AdaLora(targets=["body.0"], rank=1, initial_rank=4))
    before = set(task.learning.tensors())
    task.adapter.finish_(task.model)
    assert {"body.0.lora_A", "body.0.lora_B"} <= task.learning.tensors().keys() != before


def test_it_loads_exactly_its_tensors() -> None:
    task, other = built(), built()
    other.learning.load_(task.learning.tensors(), "here")
    found = other.learning.tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in task.learning.tensors().items())
    with pytest.raises(InputError, match=r"^E-ADAPTER-KEYS: here .*missing body\.0\.lora_A"):
        task.learning.load_({}, "here")
