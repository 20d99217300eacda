"""The contract of accelerations as tests: a subclass of `AccelerationContract` names the acceleration. Needs pytest."""

import copy
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from loralight.adapters import Lora, trainable
from loralight.config.build import make
from loralight.config.composition import compose, plain
from loralight.config.plugins import add_folder, discover
from loralight.testing.adapters import TinyBert, batch_of
from loralight.training.task import AdapterTask

_SIZES = (5, 8, 3)  # rows of the batches


class AccelerationContract:
    """Tests the promises of an acceleration with LoRA on a BERT of two layers with random weights.

        class TestMine(AccelerationContract, acceleration="mine", plugin=Path("mine")): ...

    An acceleration that does not apply to a BERT on a CPU must give its reason and leave the model unchanged.

    Args:
        acceleration: its name in the config's group ``acceleration``.
        choice: the file in ``conf/acceleration/`` that contains it; the file of the same name if None.
        plugin: the plugin's folder, if the plugin is not installed.
    """

    acceleration: ClassVar[str] = ""
    choice: ClassVar[str | None] = None
    plugin: ClassVar[Path | None] = None

    def __init_subclass__(
        cls, *, acceleration: str = "", choice: str | None = None, plugin: Path | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.acceleration, cls.choice, cls.plugin = acceleration or cls.acceleration, choice, plugin or cls.plugin

    @pytest.fixture
    def node(self) -> dict[str, Any]:
        """The acceleration's node in the config."""
        if self.plugin is not None and self.plugin.name not in {found.name for found in discover()}:
            add_folder(str(self.plugin))
        config = compose("train", [f"acceleration={self.choice or self.acceleration}"])
        return dict(plain(config.acceleration[self.acceleration]))

    @pytest.fixture
    def plain_task(self) -> AdapterTask:
        """A task without the acceleration, in training mode."""
        return _build({})

    @pytest.fixture
    def task(self, node: dict[str, Any]) -> AdapterTask:
        """The same task with the acceleration, in training mode."""
        return _build({self.acceleration: make(node)})

    def test_training_steps_compute_the_same(self, task: AdapterTask, plain_task: AdapterTask) -> None:
        expected, found = _train(plain_task), _train(task)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        learned = trainable(plain_task.model)
        for name, parameter in trainable(task.model).items():
            torch.testing.assert_close(parameter, learned[name], rtol=1e-3, atol=1e-5)

    def test_evaluation_computes_the_same(self, task: AdapterTask, plain_task: AdapterTask) -> None:
        torch.testing.assert_close(_logits(task.eval()), _logits(plain_task.eval()), rtol=1e-5, atol=1e-5)

    def test_following_the_mode_twice_is_following_it_once(self, task: AdapterTask) -> None:
        task.train().train()
        kinds = _form(task.model)
        task.eval().eval()
        task.train()
        assert _form(task.model) == kinds

    def test_it_leaves_a_model_as_it_was(self, task: AdapterTask, plain_task: AdapterTask) -> None:
        _train(task)
        plain_task.load_trainable(task.trainable_tensors(), "the other")
        task.accelerations.detach_(task.model)
        assert not task.accelerations.on
        assert _form(task.model.eval()) == _form(plain_task.model.eval())
        assert torch.equal(_logits(task), _logits(plain_task))

    def test_set_aside_it_leaves_the_model_as_it_was_and_comes_back(
        self, task: AdapterTask, plain_task: AdapterTask
    ) -> None:
        with task.unaccelerated():
            assert _form(task.model) == _form(plain_task.eval().model)
        plain_task.train()
        torch.testing.assert_close(_train(task), _train(plain_task), rtol=1e-5, atol=1e-6)

    def test_where_it_does_not_apply_nothing_has_changed(self, task: AdapterTask, plain_task: AdapterTask) -> None:
        applies = self.acceleration in task.accelerations.on
        assert applies or task.accelerations.off[self.acceleration]
        assert applies or _form(task.model) == _form(plain_task.model)

    def test_a_copy_is_independent_and_computes_the_same(self, task: AdapterTask) -> None:
        expected = _logits(task.eval())
        for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
            assert torch.equal(_logits(twin), expected)
            with torch.no_grad():
                for parameter in trainable(twin.model).values():
                    parameter.add_(1)
        assert torch.equal(_logits(task), expected)


class _WithoutDropout(TinyBert):
    """A model without dropout: an acceleration may draw other masks, equal only in distribution."""

    def build_model(self) -> BertForSequenceClassification:
        model = super().build_model()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model


def _build(accelerations: dict[str, Any]) -> AdapterTask:
    torch.manual_seed(0)
    task = _WithoutDropout(adapter=Lora(targets="all-linear", rank=2), accelerations=accelerations)
    task.configure_model()
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return task


def _train(task: AdapterTask) -> Tensor:
    """The losses of a few steps: (steps,)."""
    task.start_accelerations_()
    task.train()
    optimizer = torch.optim.SGD(trainable(task.model).values(), lr=0.1)
    losses = []
    for batch in map(batch_of, _SIZES):
        with task.accelerations.step(task.model):
            loss = task.step(batch).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def _logits(task: AdapterTask) -> Tensor:
    logits: Tensor = task.step(batch_of(6)).predictions
    return logits


def _form(model: nn.Module) -> list[tuple[type[nn.Module], int, int, int]]:
    """The class of each module, and the numbers of its hooks."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    return [(type(module), *(len(getattr(module, name)) for name in hooks)) for module in model.modules()]  # type: ignore[misc]
