"""A task whose step computes twice, with its adapter and without, written against the contract alone."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy
from transformers import LlamaConfig, LlamaForCausalLM

from loralight import AdapterTask, Step
from loralight.acceleration import Acceleration, FrozenProducts, GradientCheckpointing, SelectiveRecompute
from loralight.adapters import Adapter, BitFit, Lora, disabled, trainable
from loralight.errors import InputError

from ..fitting import Batches, trainer

BETA, LR = 0.5, 0.05


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    """Of each row's tokens given those before them, (batch,)."""
    scores = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, ids[:, 1:, None]).squeeze(2).sum(1)


class Preferences(AdapterTask):
    """Direct preference optimization (Rafailov et al., 2023). A batch: chosen and rejected (batch, tokens)."""

    def build_model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": BinaryAccuracy()})

    def step(self, batch: dict[str, Tensor]) -> Step:
        rows = torch.cat([batch["chosen"], batch["rejected"]])
        with torch.no_grad(), disabled(self.model):
            reference = log_probabilities(self.model, rows)
        chosen, rejected = (log_probabilities(self.model, rows) - reference).chunk(2)
        margins = BETA * (chosen - rejected)
        return Step(-F.logsigmoid(margins).mean(), margins.sigmoid(), torch.ones_like(margins).long())

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{} for _ in inputs]


def batches() -> Batches:
    random = torch.Generator().manual_seed(1)
    draw = partial(torch.randint, 0, 50, (4, 7), generator=random)
    return Batches({"chosen": draw(), "rejected": draw()} for _ in range(2))


def trained(folder: Path, adapter: Adapter, **accelerations: Acceleration) -> tuple[AdapterTask, list[float]]:
    torch.manual_seed(0)
    optimizer: Any = partial(torch.optim.SGD, lr=LR)
    task = Preferences(adapter=adapter, optimizer=optimizer, accelerations=accelerations)
    losses: list[float] = []

    class Note(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    trainer(default_root_dir=folder, callbacks=[Note()]).fit(task, batches(), batches())
    return task, losses


def by_hand(adapter: Lora) -> tuple[dict[str, Tensor], list[float]]:
    """The same two steps with a second model as the reference."""
    torch.manual_seed(0)
    task = Preferences(adapter=adapter)
    task.configure_model()
    reference, model = task.build_model(), copy.deepcopy(task.model)
    losses = []
    for batch in batches():
        margins = sum(
            sign * (log_probabilities(model, batch[key]) - log_probabilities(reference, batch[key]).detach())
            for key, sign in (("chosen", 1), ("rejected", -1))
        )
        loss = -F.logsigmoid(BETA * torch.as_tensor(margins)).mean()
        learns = trainable(model)
        for parameter, gradient in zip(learns.values(), torch.autograd.grad(loss, list(learns.values())), strict=True):
            parameter.data.sub_(gradient, alpha=LR)
        losses.append(float(loss.detach()))
    return trainable(model), losses


@pytest.mark.parametrize("how", ["plainly", "accelerated", "recomputed"])
def test_two_steps_are_those_with_a_second_model_as_the_reference(how: str, tmp_path: Path) -> None:
    adapter = Lora(targets="all-linear", rank=2, lr_rank=None)
    accelerations: dict[str, dict[str, Acceleration]] = {
        "plainly": {},
        "accelerated": {"frozen_products": FrozenProducts(), "selective_recompute": SelectiveRecompute()},
        "recomputed": {"gradient_checkpointing": GradientCheckpointing()},
    }
    expected, wanted = by_hand(adapter)
    task, losses = trained(tmp_path, adapter, **accelerations[how])
    assert losses == pytest.approx(wanted, abs=1e-5)
    assert losses[0] == pytest.approx(0.6931472, abs=1e-5)  # log 2: nothing is learned yet
    assert losses[1] != losses[0]
    found = trainable(task.model)
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


def test_a_method_without_a_base_is_refused_at_the_first_step(tmp_path: Path) -> None:
    class Biased(Preferences):
        def build_model(self) -> LlamaForCausalLM:
            config = super().build_model().config
            config.attention_bias = True
            return LlamaForCausalLM(config)

    optimizer: Any = partial(torch.optim.SGD, lr=LR)
    task = Biased(adapter=BitFit(), optimizer=optimizer)
    task.configure_model()
    with pytest.raises(InputError, match=r"^E-DISABLED: BitFit trains "):
        task.step(batches()[0])
