"""Training in half precision: what learns is kept and stepped in single, whatever computes."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import LlamaConfig, LlamaModel

from loralight.adapters import AdaLora, Adapter, Dora, Lora
from loralight.adapters.base import trainable
from loralight.adapters.methods.bitfit import BitFit
from loralight.adapters.methods.ia3 import IA3
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.precision import half_precision_lines
from loralight.training.task import AdapterTask, Step

from .fitting import Batches, trainer


class Net(nn.Module):
    """A decoder with rotary positions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "attention_bias": True,
        }
        self.base = LlamaModel(LlamaConfig(vocab_size=50, initializer_range=0.3, **sizes))
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.base(ids, use_cache=False).last_hidden_state[:, -1])


class Toy(AdapterTask):
    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return Net()

    def head(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule("head")]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(3)})

    def step(self, batch: tuple[Tensor, Tensor]) -> Step:
        logits = self.model(batch[0])
        return Step(F.cross_entropy(logits.float(), batch[1]), logits, batch[1])

    def predict_batch(self, inputs: Any) -> list[dict[str, Any]]:
        return []


def fit(
    precision: Any,
    adapter: Adapter,
    *,
    epochs: int = 2,
    resume: Path | None = None,
    fused: bool = False,
    **settings: Any,
) -> Toy:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (3, 8, 6), generator=random)
    task = Toy(adapter=adapter, optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=fused))
    settings |= {"max_epochs": epochs, "precision": precision, "plugins": [FolderCheckpointIO()]}
    batches = Batches((batch, batch[:, 0] % 3) for batch in ids)
    trainer(**settings).fit(task, batches, batches, ckpt_path=resume)
    return task


HALVES = ["bf16-mixed", "bf16-true"]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize(
    "adapter",
    [Lora(targets="all-linear"), Dora(targets="all-linear"), AdaLora(targets="all-linear"), IA3()],
    ids=lambda adapter: type(adapter).__name__,
)
def test_what_an_adapter_adds_and_the_head_are_kept_and_stepped_in_single_precision(
    precision: str, adapter: Adapter
) -> None:
    task = fit(precision, adapter)
    learning = trainable(task.model)
    assert {parameter.dtype for parameter in learning.values()} == {torch.float32}
    frozen = {p.dtype for p in task.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    states = task.trainer.optimizers[0].state
    assert all(states[p]["exp_avg"].dtype is torch.float32 for p in learning.values())
    assert any(not torch.equal(p, p.bfloat16().float()) for p in learning.values())
    assert {buffer.dtype for buffer in task.model.base.rotary_emb.buffers()} == {torch.float32}


@pytest.mark.parametrize("precision", HALVES)
def test_training_in_half_precision_ends_near_where_training_in_single_does(precision: str) -> None:
    expected, found = (trainable(fit(p, Lora(targets="all-linear")).model) for p in ("32-true", precision))
    moved = sorted(name for name in expected if name.endswith("lora_B"))  # from zero
    ours, theirs = (torch.cat([one[name].flatten() for name in moved]) for one in (found, expected))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.9


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_steps_after_clipping_as_one_that_loops_over_weights(precision: str) -> None:
    expected, found = (
        trainable(fit(precision, Lora(targets="all-linear"), fused=fused, gradient_clip_val=0.1).model)
        for fused in (False, True)
    )
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("precision", HALVES)
def test_a_resumed_run_in_half_precision_is_the_uninterrupted_one(precision: str, tmp_path: Path) -> None:
    half = fit(precision, Lora(targets="all-linear", dropout=0.1), epochs=1)
    half.trainer.save_checkpoint(tmp_path / "half")
    whole = fit(precision, Lora(targets="all-linear", dropout=0.1), epochs=2)
    resumed = fit(precision, Lora(targets="all-linear", dropout=0.1), epochs=2, resume=tmp_path / "half")
    first, second = whole.trainable_tensors(), resumed.trainable_tensors()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_the_base_that_learn_are_cast_with_their_layers() -> None:
    task = fit("bf16-true", BitFit())
    in_base = {p.dtype for name, p in trainable(task.model).items() if not name.startswith("head.")}
    assert in_base <= {torch.bfloat16} and task.model.head.weight.dtype is torch.float32


def test_a_cast_to_more_digits_and_a_move_touch_everything() -> None:
    task = Toy(adapter=Lora(targets="all-linear"))
    task.configure_model()
    task.to(torch.float64)
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float64}
    task.to("meta")
    assert {tensor.device.type for tensor in task.model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("known", "precision", "told"),
    [
        ({"avx512_bf16": True, "avx2": True}, "32-true", True),
        ({"avx512_bf16": False, "avx2": True}, "32-true", False),
        ({"bf16": True}, "32-true", True),  # of 64-bit Arm
        ({"amx_bf16": True}, "bf16-mixed", False),
    ],
)
def test_a_run_in_float32_tells_that_the_processor_is_faster_in_half_precision(
    known: dict[str, bool], precision: Any, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    lines = half_precision_lines(lightning.Trainer(accelerator="cpu", precision=precision, logger=False))
    assert ["trainer.precision=bf16-mixed" in line for line in lines] == [True] * told
