"""Layers that the loss never reads: presets leave them out before training, a name that the user gives is an error."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoTokenizer, BigBirdConfig, BigBirdModel

import loralight
from loralight.adapters import AdaLora, FullFineTuning, Lora, Vera
from loralight.adapters.base import Adapter
from loralight.artifacts.export import read_made
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification
from loralight.training.task import AdapterTask, Step
from loralight.training.unread import patterns


class Block(nn.Module):
    """Two layers, one of which may be for nothing."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.used, self.side, self.read = nn.Linear(4, 4), nn.Linear(4, 4), read

    def forward(self, x: Tensor) -> Tensor:
        y = self.side(x)
        return self.used(x) + y if self.read else self.used(x)


class Net(nn.Module):
    """Blocks, experts of which one is asked, a layer that training may skip, a pooler that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(read=number == 0) for number in range(2))
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.skipped, self.pooler, self.absent = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        self.pooler(x)
        if not self.training or torch.rand(()) > 0.5:
            x = x + self.skipped(x)
        return self.head(self.experts[1](x))


class Toy(AdapterTask):
    def build_model(self) -> nn.Module:
        return Net()

    def head(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule("head")]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(3)})

    def step(self, batch: tuple[Tensor, Tensor]) -> Step:
        logits = self.model(batch[0])
        return Step(nn.functional.cross_entropy(logits, batch[1]), logits, batch[1])

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return []

    def tiny_batch(self) -> tuple[Tensor, Tensor]:
        return torch.ones(2, 4), torch.zeros(2, dtype=torch.long)


UNREAD = ["absent", "blocks.1.side", "pooler"]
METHODS = [
    Lora(targets="all-linear", rank=2),
    Vera(targets="all", rank=2),
    AdaLora(targets="all-linear", rank=1, initial_rank=2),
]


def built(adapter: Adapter, kind: type[Toy] = Toy, **arguments: Any) -> Toy:
    task = kind(adapter=adapter, optimizer=partial(torch.optim.SGD, lr=0.1), **arguments)
    task.configure_model()
    return task


@pytest.mark.parametrize("adapter", METHODS, ids=lambda adapter: type(adapter).__name__)
def test_presets_leave_out_what_the_loss_never_reads_and_nothing_that_other_data_may_ask_for(adapter: Adapter) -> None:
    task = built(adapter)
    names = {name for found in task.adapted.values() for name in found}
    assert task.unread == UNREAD
    assert names == {
        *("blocks.0.used", "blocks.0.side", "blocks.1.used", "skipped"),
        *(f"experts.{number}" for number in range(3)),
    }


def test_the_search_draws_no_random_number_that_training_would_draw() -> None:
    torch.manual_seed(0)
    built(Lora(targets="*.used", rank=2))
    found = torch.rand(3)

    class Blind(Toy):
        def tiny_batch(self) -> Any:
            return None

    torch.manual_seed(0)
    built(Lora(targets="*.used", rank=2), Blind)
    assert torch.equal(torch.rand(3), found)


@pytest.mark.parametrize("targets", [["all-linear", "*.side"], ["*.used", "*[er]*"], "*"])
def test_a_layer_that_the_user_named_is_an_error_with_the_setting_that_mends_it(targets: Any) -> None:
    with pytest.raises(
        InputError, match=r"^E-UNREACHED: no gradient reaches .*; set adapter.exclude='\[.*\]'$"
    ) as error:
        built(Lora(targets=targets, rank=2))
    (listed,) = re.findall(r"exclude='\[(.*)\]'", str(error.value))
    built(Lora(targets=targets, rank=2, exclude=listed.split(", ")))


def test_the_search_leaves_running_statistics_as_they_were() -> None:
    class Normed(Toy):
        def build_model(self) -> nn.Module:
            model = Net()
            model.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
            return model

    statistics = dict(built(Lora(targets="all-linear", rank=2), Normed).model.get_submodule("head.0").named_buffers())
    assert int(statistics["num_batches_tracked"]) == 0 and not statistics["running_mean"].any()


def test_a_name_of_which_nothing_else_would_be_left_is_to_go_itself() -> None:
    with pytest.raises(InputError, match=r"reaches pooler: .*; leave 'pooler' out of adapter.targets$"):
        built(Lora(targets=["pooler", "*.used"], rank=2))


def test_patterns_mean_these_layers_alone() -> None:
    names = ["layers.0.side", "layers.1.side", "layers.0.up", "layers.1.up", "pooler"]
    assert patterns(["layers.0.side", "layers.1.side", "pooler"], names) == ["layers.*.side", "^pooler"]
    assert patterns(["layers.1.side"], names) == ["^layers.1.side"]


@pytest.mark.parametrize("head_begins_at_0", [False, True])
def test_a_layer_whose_gradient_is_always_0_is_left_out_too(head_begins_at_0: bool) -> None:
    """As a projection of images is, where there are texts alone; gradients show it if they come through the head."""

    class Muted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.images = nn.Linear(4, 4)
            if head_begins_at_0:
                nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.where(torch.ones_like(x) > 0, x, self.images(x)))

    class WithMuted(Toy):
        def build_model(self) -> nn.Module:
            return Muted()

    task = built(Lora(targets="all-linear", rank=2), WithMuted)
    assert task.unread == sorted([*UNREAD, *([] if head_begins_at_0 else ["images"])])


@pytest.mark.parametrize(
    ("silent", "left_out"),
    [
        ({(2, "side")}, ["blocks.2.side"]),  # as a Longformer's projections for all but the first token
        ({(1, "side")}, []),  # not the last one
        ({(2, "side"), (2, "used")}, []),  # a block that begins as an identity
        ({(1, "side"), (2, "side")}, []),
    ],
)
def test_of_the_last_block_what_the_head_does_not_read_is_left_out(
    silent: set[tuple[int, str]], left_out: list[str]
) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = ("used", "side")
            self.blocks = nn.ModuleList(nn.ModuleDict({part: nn.Linear(4, 4) for part in parts}) for _ in range(3))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for number, block in enumerate(self.blocks):
                x = x + sum(layer(x) * ((number, name) not in silent) for name, layer in block.items())
            return self.head(x)

    class OfBlocks(Toy):
        def build_model(self) -> nn.Module:
            return Blocks()

    assert built(Lora(targets="all-linear", rank=2), OfBlocks).unread == left_out


@pytest.mark.parametrize("learns_head", [True, False])
def test_a_model_whose_code_cuts_off_all_gradients_is_refused_before_training(learns_head: bool) -> None:
    """As Reformer's blocks do, which compute again where a gradient comes back to their inputs."""

    class Cut(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.blocks[0](x)
            return self.head(x)

    class Cutting(Toy):
        def build_model(self) -> nn.Module:
            model = Cut()
            del model.blocks[1], model.experts, model.skipped, model.pooler, model.absent
            return model

        def head(self, model: nn.Module) -> list[nn.Module]:
            return super().head(model) if learns_head else []

    exclude = () if learns_head else "head"
    with pytest.raises(InputError, match=r"^E-UNREACHED: no gradient reaches any of the 2 layers .*adapter=full"):
        built(Lora(targets="all-linear", rank=2, exclude=exclude), Cutting)


def test_a_method_without_such_a_setting_is_as_it_was() -> None:
    assert built(FullFineTuning()).unread == []


def test_a_model_that_is_only_used_is_not_searched_as_its_adapter_names_the_layers() -> None:
    task = Toy(adapter=built(Lora(targets="all-linear", rank=2)).adapter)
    task.configure_model()
    assert task.unread == [] and "pooler" not in {name for found in task.adapted.values() for name in found}


def test_an_encoder_whose_pooler_is_not_read_trains_by_default_and_is_loaded_again(
    tiny_bert: str, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BigBirdConfig(vocab_size=len(tokenizer), attention_type="original_full", **sizes)
    BigBirdModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    task = TextClassification(
        checkpoint=str(tmp_path / "base"),
        labels=["a", "b"],
        adapter=Lora(targets="all-linear", rank=2),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    task.configure_model()
    assert task.unread == ["bert.pooler"]
    task.save(tmp_path / "adapter")
    assert read_made(tmp_path / "adapter")["adapter"]["arguments"]["exclude"] == ["^bert.pooler"]
    loaded = loralight.load(tmp_path / "adapter")
    assert loaded.predict(["a film"]) == task.predict(["a film"])
