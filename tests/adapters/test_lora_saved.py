"""Layers of every kind learn, are saved and come back like any other, inside a task."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2Model, MixtralConfig, MixtralForCausalLM

from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.artifacts.export import load_adapter, read_recipe, save_adapter
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.task import AdapterTask, Step

from ..fitting import Batches, trainer

SMALL = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
IDS = torch.arange(14).view(2, 7)


class Logits(nn.Module):
    """A language model from ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits


def tied() -> nn.Module:
    config = LlamaConfig(**SMALL, num_hidden_layers=1, tie_word_embeddings=True, **NO_TOKENS)
    return Logits(LlamaForCausalLM(config))


def mixture() -> nn.Module:
    config = MixtralConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=3, **NO_TOKENS)
    return Logits(MixtralForCausalLM(config))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Embedding(30, 16), nn.TransformerEncoder(layer, 2))


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)


Build = Callable[[], nn.Module]
KINDS: dict[str, tuple[Build, Tensor, dict[str, Any]]] = {
    "tied": (tied, IDS, {"targets": ["lm_head", "q_proj"]}),
    "experts": (mixture, IDS, {"targets": ["experts", "embedding"]}),
    "attention": (encoder, IDS, {"targets": ["all", "embedding"]}),
    "slices": (vit, torch.randn(2, 3, 32, 32), {"targets": "*.qkv", "slices": {"*.qkv": "qv"}}),
}


class Task(AdapterTask):
    """Learns to be large."""

    def __init__(self, *, build: Build, **training: Any) -> None:
        super().__init__(**training)
        self.build = build

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def step(self, batch: Tensor) -> Step:
        y = self.model(batch)
        return Step(y.square().mean(), y, batch)

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def predict_batch(self, inputs: Sequence[Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        return []


def make(kind: str) -> Task:
    build, _, settings = KINDS[kind]
    task = Task(build=build, adapter=Lora(**settings, rank=2), optimizer=partial(torch.optim.AdamW, lr=0.01))
    task.configure_model()
    return task


def output(task: Task, x: Tensor) -> Tensor:
    with torch.no_grad():
        return task.eval().model(x)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_every_kind_are_trained_and_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    task, x = make(kind), KINDS[kind][1]
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    run = trainer(max_epochs=2, limit_val_batches=0, plugins=[FolderCheckpointIO()], default_root_dir=tmp_path)
    run.fit(task, Batches([x, x]), Batches([x]))
    learns = trainable(task.model)
    state = task.model.state_dict()
    shared = {parameter.data_ptr() for parameter in learns.values()}
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert moved and all(state[name].data_ptr() in shared for name in moved), "nothing that is frozen moves"
    assert task.trainable_tensors().keys() == learns.keys()
    optimized = [parameter for group in run.optimizers[0].param_groups for parameter in group["params"]]
    assert sorted(map(id, learns.values())) == sorted(map(id, optimized))

    run.save_checkpoint(tmp_path / "checkpoint")
    resumed = make(kind)
    resumed.on_load_checkpoint(FolderCheckpointIO().load_checkpoint(tmp_path / "checkpoint"))
    recipe = {"task": {"name": "a task", "arguments": {}}, "adapter": {"name": "lora", "arguments": {}}}
    save_adapter(task, tmp_path / "adapter", recipe=recipe, metrics={})
    loaded = make(kind)
    load_adapter(loaded, tmp_path / "adapter", read_recipe(tmp_path / "adapter"))
    expected = output(task, x)
    assert torch.equal(output(resumed, x), expected) and torch.equal(output(loaded, x), expected)
    assert not torch.equal(output(make(kind), x), expected)
    assert torch.equal(output(copy.deepcopy(task), x), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("targets", "has_form"), [(["in_proj"], True), (["in_proj", "out_proj"], False)])
def test_layers_of_mamba_that_peft_refuses_have_no_form_there(targets: list[str], has_form: bool) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1}
    model = Mamba2Model(Mamba2Config(vocab_size=20, **sizes))
    plain, adapter = copy.deepcopy(model), Lora(targets=targets, rank=2)
    inject(model, adapter)
    assert (adapter.peft_config(model) is not None) is has_form
    if has_form:
        get_peft_model(plain, LoraConfig(target_modules=targets))  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="incompatible with Mamba"):
            get_peft_model(plain, LoraConfig(target_modules=targets))  # type: ignore[arg-type]
