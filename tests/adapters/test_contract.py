"""What every adapter method promises: each file in ``conf/adapter/`` is put to it."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from loralight.adapters import inject, merge
from loralight.adapters.base import Added, trainable
from loralight.build import build_task
from loralight.checkpoint import FolderCheckpointIO
from loralight.composition import compose, plain
from loralight.errors import InputError
from loralight.plugins import conf_folders
from loralight.task import AdapterTask

METHODS = sorted(file.stem for folder in conf_folders() for file in folder.glob("adapter/*.yaml"))
PARTS = ("task", "adapter", "optimizer", "scheduler")


class Batches(list[dict[str, Tensor]]):
    """A loader; Lightning takes a plain list for several of them."""


def batch_of(size: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(size)
    ids = torch.randint(1000, 2000, (size, 12), generator=random)
    mask = (torch.arange(12) < torch.randint(4, 13, (size, 1), generator=random)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (size,), generator=random)}


def logits(model: nn.Module) -> Tensor:
    inputs = {name: tensor for name, tensor in batch_of(5).items() if name != "labels"}
    with torch.no_grad():
        return model(**inputs).logits


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that a state dict leaves out."""
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def build(method: str, checkpoint: str) -> AdapterTask:
    config = compose("train", [f"adapter={method}", f"model.checkpoint='{checkpoint}'", "model.max_length=16"])
    settings = {part: plain(config[part]) for part in PARTS}
    return build_task({**settings, "seed": 0}, {"labels": ["a", "b", "c"]})


def disturb(model: nn.Module) -> None:
    """Move what learns away from where it starts, as far as training could."""
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


@pytest.fixture(params=METHODS)
def task(request: pytest.FixtureRequest, tiny_bert: str) -> AdapterTask:
    built = build(request.param, tiny_bert)
    built.eval()
    return built


class Trained(NamedTuple):
    task: AdapterTask
    before: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    checkpoint: dict[str, Any]


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A task after five steps of training, what its model was before, and its checkpoint."""
    built = build(request.param, tiny_bert)
    before = everything(built.model)
    folder: Path = tmp_path_factory.mktemp("trained")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        plugins=[FolderCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = Batches(batch_of(size) for size in range(4, 9))
    trainer.fit(built, batches, batches)
    trainer.save_checkpoint(folder / "checkpoint")
    checkpoint = FolderCheckpointIO().load_checkpoint(folder / "checkpoint")
    return Trained(built, before, trainer.optimizers[0], checkpoint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_at_step_0_the_adapted_model_computes_exactly_what_the_base_does(task: AdapterTask, dtype: torch.dtype) -> None:
    base = task.build_model().to(dtype).eval()
    adapted = copy.deepcopy(base)
    inject(adapted, task.adapter, head=task.head(adapted))
    assert torch.equal(logits(adapted), logits(base)) or not task.adapter.starts_at_base


def test_the_base_s_tensors_stay_themselves_and_keep_their_keys(task: AdapterTask) -> None:
    model = task.build_model()
    base = dict(model.named_parameters())
    inject(model, task.adapter, head=task.head(model))
    assert {id(parameter) for parameter in base.values()} <= {id(parameter) for parameter in model.parameters()}
    if task.adapter.keeps_keys:
        assert base.keys() <= model.state_dict().keys()


def test_what_requires_gradients_is_in_the_optimizer_once_and_in_the_checkpoint(trained: Trained) -> None:
    learns = {name: p for name, p in trained.task.named_parameters() if p.requires_grad}
    optimized = [id(p) for group in trained.optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(parameter) for parameter in learns.values()}
    buffers = {f"model.{name}" for name, _ in trained.task.model.named_buffers()}
    saved = {f"model.{name}": tensor for name, tensor in trained.checkpoint["state_dict"].items()}
    assert saved.keys() - buffers == learns.keys()
    assert all(torch.equal(saved[name], parameter) for name, parameter in learns.items())
    assert {f"model.{name}" for name in trained.checkpoint["optimizer_states"][0]["state"]} == learns.keys()


def test_training_moves_all_that_learns_and_not_one_bit_of_what_is_frozen(trained: Trained) -> None:
    after = everything(trained.task.model)
    assert after.keys() == trained.before.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, trained.before[name])}
    own = dict(trained.task.model.named_buffers()).keys() - dict(trained.task.build_model().named_buffers()).keys()
    assert moved - own == set(trainable(trained.task.model)), "a method's own buffers may move, the base's may not"


def test_a_checkpoint_brings_an_untrained_model_to_where_the_trained_one_is(trained: Trained) -> None:
    other = copy.deepcopy(trained.task)
    disturb(other.model)
    other.load_trainable(trained.checkpoint["state_dict"], "the checkpoint")
    assert torch.equal(logits(other.eval().model), logits(trained.task.eval().model))


def can_merge(model: nn.Module) -> bool:
    return not any(isinstance(module, Added) for module in model.modules())


def test_merging_gives_a_plain_model_with_the_old_keys_and_equal_outputs_or_is_refused(task: AdapterTask) -> None:
    plain_model = task.build_model()
    disturb(task.model)
    expected = logits(task.model)
    if not can_merge(task.model):
        with pytest.raises(InputError, match=r"^E-MERGE: "):
            merge(task.model)
        assert torch.equal(logits(task.model), expected), "a model that cannot be merged is left as it is"
        return
    merge(task.model)
    assert task.model.state_dict().keys() == plain_model.state_dict().keys()
    assert [type(module) for module in task.model.modules()] == [type(module) for module in plain_model.modules()]
    assert (logits(task.model) - expected).norm() <= 2e-6 * expected.norm()
    plain_model.load_state_dict(task.model.state_dict())
    assert torch.equal(logits(plain_model.eval()), logits(task.model))


def test_the_form_that_a_trained_adapter_is_kept_in_computes_the_same_and_is_what_its_adapter_builds(
    trained: Trained,
) -> None:
    task = copy.deepcopy(trained.task).eval()
    before = logits(task.model)
    kept = task.adapter.finish_(task.model)
    found = logits(task.model)
    assert (found - before).norm() <= 2e-6 * before.norm()
    rebuilt = task.build_model().eval()
    inject(rebuilt, kept, head=task.head(rebuilt))
    rebuilt.load_state_dict(task.model.state_dict())
    assert trainable(rebuilt).keys() == trainable(task.model).keys()
    assert torch.equal(logits(rebuilt), found)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_an_adapted_model_can_be_copied(task: AdapterTask, copied: Any) -> None:
    disturb(task.model)
    before = logits(task.model)
    twin = copied(task.model)
    assert copied(task.adapter) == task.adapter
    assert trainable(twin).keys() == trainable(task.model).keys()
    assert torch.equal(logits(twin), before)
    disturb(twin)
    if can_merge(twin):
        merge(twin)
    assert torch.equal(logits(task.model), before), "the copy shares nothing with the original"


@pytest.mark.parametrize("method", METHODS)
def test_the_file_offers_every_argument_of_the_constructor_with_the_same_default(method: str) -> None:
    given = OmegaConf.to_container(compose("train", [f"adapter={method}"]).adapter, resolve=False)
    assert isinstance(given, dict)
    fields = {field.name: field for field in dataclasses.fields(type_of(given.pop("_target_")))}
    assert given.keys() == fields.keys()
    for name, value in given.items():
        field = fields[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is not dataclasses.MISSING and not (isinstance(value, str) and "${" in value):
            assert (tuple(value) if isinstance(value, list) else value) == default, name


def type_of(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)
