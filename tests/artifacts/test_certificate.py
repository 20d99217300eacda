"""What a merged model is compared by, also where a step computes more than once."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from loralight.adapters import Lora, disabled, merge, trainable
from loralight.artifacts.certificate import certificate_tables, compares_with_base, difference, outputs
from loralight.testing import TaskContract
from loralight.training import AdapterTask, Step


class TwoPasses(AdapterTask):
    """A stranger's task."""

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{} for _ in inputs]


class Preferences(TwoPasses):
    """What it predicts says how far the adapter has moved from the base."""

    def step(self, batch: Tensor) -> Step:
        with torch.no_grad(), disabled(self.model):
            reference = self.model(batch)
        margins = (self.model(batch) - reference).sum(1)
        return Step(-F.logsigmoid(margins).mean(), margins, batch)


class Contrast(TwoPasses):
    """Two views of each row, dropped out also while it is measured."""

    def step(self, batch: Tensor) -> Step:
        first, second = (self.model(F.dropout(batch, 0.5, training=True)) for _ in range(2))
        return Step((first - second).square().mean(), first @ second.T, batch)


@pytest.mark.parametrize("kind", [Preferences, Contrast])
def test_a_step_of_two_passes_is_compared_by_those_that_a_merged_model_has(kind: type[TwoPasses]) -> None:
    task = kind(adapter=Lora(targets=["0", "2"], rank=2))
    task.configure_model()
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    data: Any = SimpleNamespace(splits={"validation": rows}, collate=torch.stack)
    TaskContract().test_a_merged_model_computes_what_the_adapted_one_does(SimpleNamespace(task=task, data=data))  # type: ignore[arg-type]
    assert compares_with_base(task, data, 0) == (kind is Preferences)
    adapted, merged = copy.deepcopy(task).eval(), copy.deepcopy(task).eval()
    merge(merged.model)
    found = difference(outputs(adapted, data, range(4)), outputs(merged, data, range(4)))
    assert found["relative_error"] < 1e-6 and found["values"] == 4 * 3 * (1 if kind is Preferences else 2)
    unmerged = copy.deepcopy(task).eval()
    unmerged.model.load_state_dict(unmerged.build_model().state_dict(), strict=False)
    for name, parameter in trainable(unmerged.model).items():
        parameter.data.mul_(name.endswith("lora_A"))
    assert difference(outputs(adapted, data, range(4)), outputs(unmerged, data, range(4)))["relative_error"] > 0.1


def test_metrics_that_need_the_base_are_told_and_not_shown() -> None:
    empty = dict.fromkeys(("outputs", "update_lost", "folded_batch_norms", "settled", "metrics"))
    (table,) = certificate_tables({**empty, "dtype": "float32", "compares_with_base": True})
    assert list(table.columns[1].cells)[-1].startswith("none: they need the base")
