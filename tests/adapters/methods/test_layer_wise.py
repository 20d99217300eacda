"""Rates and starts by depth, in full fine-tuning and in that of the last layers."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from loralight.adapters import FullFineTuning, inject
from loralight.adapters.base import Adapter, trainable
from loralight.adapters.methods.last_layers import LastLayers
from loralight.errors import InputError
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.optim import delayed, parameter_groups, schedule
from loralight.training.task import AdapterTask, Step

from ...fitting import Batches, trainer

NUM_STEPS = 12


def bert(num_layers: int = 4) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=num_layers, **sizes))


def layer_of(name: str) -> int:
    """Where BERT's own names put a parameter."""
    if ".embeddings." in name:
        return 0
    return 1 + int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else 5


def test_each_block_learns_more_slowly_than_the_one_above_it_by_one_factor() -> None:
    model, adapter = bert(), FullFineTuning(layer_decay=0.8)
    inject(model, adapter, head=[model.classifier])
    rates = {
        name: group["lr"]
        for group in parameter_groups(model, adapter, lr=0.1, head=[model.classifier], head_lr=0.7)
        for name, _ in group["params"]
    }
    assert rates.keys() == trainable(model).keys()
    for name, rate in rates.items():
        expected = 0.7 if name.startswith("classifier") else 0.1 * 0.8 ** (5 - layer_of(name))
        assert rate == pytest.approx(expected), name


@pytest.mark.parametrize(("given", "learning"), [(None, 1), (1, 1), (3, 3), (4, 4)])
def test_the_last_blocks_learn_and_what_follows_them(given: int | None, learning: int) -> None:
    model = bert()
    inject(model, LastLayers(num_layers=given), head=[model.classifier])
    expected = {name for name, _ in model.named_parameters() if layer_of(name) > 4 - learning}
    assert trainable(model).keys() == expected


def test_a_language_model_s_output_embeddings_are_not_among_its_last_layers() -> None:
    for tied in (False, True):
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, tie_word_embeddings=tied))
        inject(model, LastLayers(num_layers=1))
        assert {name.split(".")[1] for name in trainable(model)} == {"h", "ln_f"}


@pytest.mark.parametrize("number", [0, 5, -1])
def test_as_many_blocks_as_the_model_has_can_learn(number: int) -> None:
    with pytest.raises(InputError, match=rf"^E-NUM-LAYERS: adapter.num_layers is {number}; .* has 4 blocks"):
        inject(bert(), LastLayers(num_layers=number))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.0}, "E-LAYER-DECAY: adapter.layer_decay is 0.0"),
        ({"layer_decay": 1.1}, "E-LAYER-DECAY"),
        ({"layer_decay": float("nan")}, "E-LAYER-DECAY"),
        ({"gradual": 1.0}, "E-GRADUAL: adapter.gradual is 1.0"),
        ({"gradual": -0.1}, "E-GRADUAL"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [FullFineTuning, LastLayers])
def test_what_makes_no_sense_is_refused(method: Any, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        method(**settings)


@pytest.mark.parametrize("settings", [{"layer_decay": 0.9}, {"gradual": 0.5}], ids=str)
def test_a_model_without_blocks_is_refused_when_the_method_is_applied(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^E-BLOCKS"):
        inject(nn.Sequential(nn.Linear(2, 2)), FullFineTuning(**settings))
    inject(nn.Sequential(nn.Linear(2, 2)), FullFineTuning())


class Classifier(AdapterTask):
    """The tiny BERT as a task, which notes what its parameters are before each step."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.seen: list[dict[str, Tensor]] = []

    def build_model(self) -> nn.Module:
        return bert()

    def head(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule("classifier")]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(2)})

    def step(self, batch: Tensor) -> Step:
        self.seen.append({name: tensor.clone() for name, tensor in self.trainable_tensors().items()})
        logits = self.model(input_ids=batch).logits
        labels = batch[:, 0] % 2
        return Step(F.cross_entropy(logits, labels), logits, labels)

    def predict_batch(self, inputs: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
        return []


def fit(adapter: Adapter, folder: Path, *, stop: int = -1, resume: Path | None = None, **settings: Any) -> Classifier:
    scheduler = settings.pop("scheduler", partial(schedule, name="linear", warmup=0.1))
    task = Classifier(adapter=adapter, optimizer=partial(AdamW, lr=0.01, weight_decay=0.1), scheduler=scheduler)
    task.configure_model()
    random = torch.Generator().manual_seed(0)
    batches = Batches(torch.randint(3, 30, (4, 7), generator=random) for _ in range(NUM_STEPS))
    saving = lightning.pytorch.callbacks.LambdaCallback(on_train_batch_end=lambda t, *_: save(t, folder, stop))
    run = trainer(limit_val_batches=0, plugins=[FolderCheckpointIO()], default_root_dir=folder, callbacks=[saving])
    run.fit(task, batches, batches, ckpt_path=resume)
    return task


def save(trainer: lightning.Trainer, folder: Path, stop: int) -> None:
    if trainer.global_step == stop:
        trainer.save_checkpoint(folder / "inside")


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_layer_keeps_every_bit_until_its_turn_and_learns_from_then_on(tmp_path: Path, scheduled: bool) -> None:
    scheduler = partial(schedule, name="constant") if scheduled else None
    task = fit(FullFineTuning(gradual=0.5), tmp_path, scheduler=scheduler)
    states = [*task.seen, task.trainable_tensors()]  # before step 0, 1, ..., and at the end
    starts = {5: 0, 4: 1, 3: 2, 2: 4, 1: 5, 0: 6}  # half of 12 steps, in five equal parts, rounded
    for name in states[0]:
        changes = [not torch.equal(states[n][name], states[n + 1][name]) for n in range(NUM_STEPS)]
        start = starts[layer_of(name)]
        assert changes[:start] == [False] * start, name
        assert all(changes[start:]), name


def test_a_run_resumed_between_two_turns_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    adapter = LastLayers(num_layers=3, gradual=0.6, layer_decay=0.7)
    whole = fit(adapter, tmp_path / "whole", stop=5).trainable_tensors()
    with pytest.warns(UserWarning, match="You're resuming from a checkpoint"):
        resumed = fit(adapter, tmp_path / "resumed", resume=tmp_path / "whole" / "inside")
    assert len(resumed.seen) == NUM_STEPS - 5
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.trainable_tensors().items())


def test_a_late_group_has_the_schedule_s_rate_once_it_has_begun() -> None:
    def rates(gradual: float) -> dict[str, list[float]]:
        model, adapter = bert(), FullFineTuning(gradual=gradual)
        inject(model, adapter)
        optimizer = SGD(parameter_groups(model, adapter, lr=0.1))
        scheduler = delayed(schedule(optimizer, 20, name="cosine", warmup=2), 20)
        found: dict[str, list[float]] = {name: [] for group in optimizer.param_groups for name in group["param_names"]}
        for _ in range(20):
            for group in optimizer.param_groups:
                for name in group["param_names"]:
                    found[name].append(group["lr"])
            optimizer.step()
            scheduler.step()
        return found

    usual, gradual = rates(0.0), rates(0.5)
    for name, expected in usual.items():
        start = 2 * (5 - layer_of(name))
        assert gradual[name] == [0.0] * start + expected[start:]


def test_a_schedule_that_does_not_multiply_is_refused_with_layers_that_begin_late() -> None:
    model, adapter = bert(), FullFineTuning(gradual=0.5)
    inject(model, adapter)
    optimizer = SGD(parameter_groups(model, adapter, lr=0.1), momentum=0.9)
    one_cycle = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    with pytest.raises(InputError, match=r"^E-SCHEDULER: adapter.gradual needs .*; OneCycleLR does not"):
        delayed(one_cycle, 20)


def test_methods_that_start_at_once_have_their_groups_and_schedule_as_they_were() -> None:
    model, adapter = bert(), FullFineTuning()
    inject(model, adapter)
    groups = parameter_groups(model, adapter, lr=0.1)
    assert [set(group) for group in groups] == [{"name", "lr", "params"}, {"name", "lr", "weight_decay", "params"}]
    scheduler = schedule(SGD(groups), 20, name="linear")
    assert delayed(scheduler, 20) is scheduler
