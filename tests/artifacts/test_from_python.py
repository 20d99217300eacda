"""An adapter is saved and loaded without Hydra and without a run: a task's, and that of any model."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import loralight
from loralight import AdapterTask, Step, load_adapter, save_adapter
from loralight.adapters import AdaLora, Adapter, BitFit, Dora, Houlsby, Lora, inject, merge, trainable
from loralight.artifacts.loading import load
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification
from loralight.training.checkpoint import FolderCheckpointIO

IDS = torch.arange(14).view(2, 7)


def bert() -> tuple[nn.Module, list[nn.Module]]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
    assert model.bert.pooler is not None
    return model, [model.bert.pooler, model.classifier]


def llama() -> tuple[nn.Module, list[nn.Module]]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)), []


def plain() -> tuple[nn.Module, list[nn.Module]]:
    model = nn.Sequential(
        nn.Embedding(50, 16), nn.Linear(16, 16), nn.BatchNorm1d(7), nn.Sequential(nn.ReLU(), nn.Linear(16, 3))
    )
    return model, [model[3]]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[nn.Module]]]] = {"BERT": bert, "Llama": llama, "plain": plain}
TARGETS = {"BERT": ["attention", "layer.1.output.dense"], "Llama": "all-linear", "plain": "1"}


@torch.no_grad()
def output(model: Any) -> Tensor:
    found = model.eval()(IDS)
    return torch.as_tensor(found if isinstance(found, Tensor) else found.logits)


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """As training could."""
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


def adapted(kind: str, adapter: Adapter) -> tuple[nn.Module, nn.Module]:
    """A model as after training, and its base."""
    model, head = MODELS[kind]()
    base = copy.deepcopy(model)
    inject(model, adapter, head=head)
    disturb(model)
    return model, base


def adapter_of(kind: str, **arguments: Any) -> Lora:
    return Lora(targets=TARGETS[kind], rank=4, **arguments)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5.23
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_saved_computes_the_same_in_peft_and_comes_back_bit_for_bit(
    kind: str, init: Any, tmp_path: Path
) -> None:
    model, base = adapted(kind, adapter := adapter_of(kind, init=init, alpha=6.0))
    save_adapter(model, adapter, tmp_path / "adapter")
    expected, before = output(model), output(base)
    assert (expected - before).abs().max() > 0.01
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    torch.testing.assert_close(output(theirs), expected, rtol=1e-5, atol=1e-5)
    loaded = load_adapter(ours := copy.deepcopy(base), tmp_path / "adapter")
    torch.testing.assert_close(output(ours), expected, rtol=1e-5, atol=0 if init == "kaiming" else 1e-5)
    save_adapter(ours, loaded, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_pefts_comes_back_on_a_model_without_a_task(kind: str, tmp_path: Path) -> None:
    model, base = adapted(kind, adapter := adapter_of(kind))
    save_adapter(model, adapter, tmp_path / "adapter")
    PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").save_pretrained(tmp_path / "theirs")
    load_adapter(base, tmp_path / "theirs")
    assert torch.equal(output(base), output(model))


@pytest.mark.parametrize("adapter", [Houlsby(), BitFit()], ids=lambda adapter: type(adapter).__name__)
def test_a_method_that_peft_has_not_is_saved_in_our_own_format(adapter: Adapter, tmp_path: Path) -> None:
    model, base = adapted("BERT", adapter)
    save_adapter(model, adapter, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    load_adapter(base, tmp_path / "adapter")
    assert torch.equal(output(base), output(model))


def test_an_adapter_that_ends_as_another_is_saved_as_that_one(tmp_path: Path) -> None:
    model, base = adapted("BERT", adapter := AdaLora(targets="attention", rank=2))
    save_adapter(model, adapter, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert type(load_adapter(base, tmp_path / "adapter")) is Lora
    torch.testing.assert_close(output(base), output(model))


def refusals() -> dict[str, tuple[str, Callable[[Path], Any]]]:
    def save_plain(folder: Path) -> None:
        save_adapter(MODELS["plain"]()[0], adapter_of("plain"), folder / "new")

    def save_merged(folder: Path) -> None:
        model, _ = adapted("Llama", adapter_of("Llama"))
        merge(model)
        save_adapter(model, adapter_of("Llama"), folder / "new")

    def save_beside(folder: Path) -> None:
        model, _ = adapted("BERT", adapter_of("BERT"))
        model.get_parameter("bert.embeddings.LayerNorm.weight").requires_grad_(True)
        save_adapter(model, adapter_of("BERT"), folder / "new")

    def save_into_others(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "mine" / "thesis.txt").write_text("years")
        save_adapter(adapted("plain", adapter_of("plain"))[0], adapter_of("plain"), folder / "mine")

    def save_onto_a_file(folder: Path) -> None:
        (folder / "mine").write_text("years")
        save_adapter(adapted("plain", adapter_of("plain"))[0], adapter_of("plain"), folder / "mine")

    def load_nothing(folder: Path) -> None:
        load_adapter(MODELS["plain"]()[0], folder / "none")

    def load_something_else(folder: Path) -> None:
        (folder / "thesis.txt").write_text("years")
        load_adapter(MODELS["plain"]()[0], folder)

    def saved(folder: Path, kind: str = "plain") -> nn.Module:
        model, base = adapted(kind, adapter := adapter_of(kind))
        save_adapter(model, adapter, folder / "adapter")
        return base

    def load_on_other_weights(folder: Path) -> None:
        saved(folder)
        load_adapter(MODELS["plain"]()[0], folder / "adapter")

    def load_on_another_shape(folder: Path) -> None:
        base = saved(folder)
        base[1], base[3] = nn.Linear(16, 12), nn.Sequential(nn.ReLU(), nn.Linear(12, 3))  # type: ignore[operator]
        (folder / "adapter" / "loralight.json").unlink()  # of PEFT's nothing tells the weights apart
        load_adapter(base, folder / "adapter")

    def load_on_another_model(folder: Path) -> None:
        saved(folder, "BERT")
        load_adapter(MODELS["Llama"]()[0], folder / "adapter")

    def load_twice(folder: Path) -> None:
        base = saved(folder)
        load_adapter(base, folder / "adapter")
        load_adapter(base, folder / "adapter")

    def load_changed(folder: Path) -> None:
        base = saved(folder)
        file = folder / "adapter" / "adapter_model.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
        load_adapter(base, folder / "adapter")

    def load_without_the_model(folder: Path) -> None:
        saved(folder)
        load(folder / "adapter")

    return {
        "no adapter": ("E-ADAPTER: this Sequential has no adapter: inject", save_plain),
        "merged": ("E-ADAPTER: this LlamaForCausalLM has no adapter", save_merged),
        "learns beside it": ("E-ADAPTER: bert.embeddings.LayerNorm.weight learns, but", save_beside),
        "other content": ("E-OUTPUT: .*mine exists and is no adapter's folder", save_into_others),
        "a file": ("E-OUTPUT: .*mine exists and is no adapter's folder", save_onto_a_file),
        "no folder": ("E-RUN: .*none: there is no such folder", load_nothing),
        "something else": ("E-ADAPTER: .* is no adapter folder of loralight", load_something_else),
        "other weights": ("E-BASE: .* was trained on other weights", load_on_other_weights),
        "another shape": ("E-ADAPTER-KEYS: .* has shape", load_on_another_shape),
        "another model": ("E-ADAPTER-KEYS: .* its head is .* of which a LlamaForCausalLM has", load_on_another_model),
        "twice": ("E-ADAPTED: this Sequential has an adapter already", load_twice),
        "changed": ("E-CKPT-HASH: .*sha256", load_changed),
        "without the model": ("E-ADAPTER: .* loralight.load_adapter\\(model, folder\\)", load_without_the_model),
    }


@pytest.mark.parametrize("what", refusals())
def test_what_cannot_be_saved_or_loaded_is_one_message(what: str, tmp_path: Path) -> None:
    message, attempt = refusals()[what]
    with pytest.raises(InputError, match=f"^{message}"):
        attempt(tmp_path)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "thesis.txt").exists() or (tmp_path / "thesis.txt").read_text() == "years"


def test_statistics_that_training_changed_are_named_where_the_base_does_not_fit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    base = copy.deepcopy(model)
    inject(model, adapter := Lora(targets="0", rank=2))
    model.train()(torch.randn(8, 4))
    save_adapter(model, adapter, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"^E-BASE: .*; BatchNorm trained in train\(\) has statistics unlike"):
        load_adapter(base, tmp_path / "adapter")


def test_an_adapters_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    first, second = adapter_of("plain"), Houlsby()
    save_adapter(adapted("plain", first)[0], first, tmp_path / "adapter")
    save_adapter(model := adapted("BERT", second)[0], second, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "adapter_config.json").exists() and output(model).isfinite().all()


class Remembering(nn.Linear):
    """Keeps what it gave last, with its graph, as the recurrence of RecurrentGemma does."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


def test_a_model_that_keeps_a_state_of_its_last_step_is_saved(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), Remembering(16, 3))
    base = copy.deepcopy(model)
    inject(model, adapter := Lora(targets="1", rank=2), head=[model[2]])
    model(IDS).sum().backward()
    disturb(model)
    save_adapter(model, adapter, tmp_path / "adapter")
    assert model[2].last.grad_fn is not None, "it is left as it was"
    load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(output(base), output(model))


class Words(AdapterTask):
    """A script's task: three classes, of token numbers."""

    def __init__(self, *, width: int = 16, dropout: Any = None, **training: Any) -> None:
        super().__init__(**training)
        self.width, self.dropout = width, dropout

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(50, self.width), nn.Linear(self.width, 8), nn.Linear(8, 3))

    def head(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, nn.Sequential)
        return [model[2]]

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def step(self, batch: Tensor) -> Step:
        scores = self.model(batch)
        return Step(scores.square().mean(), scores, batch)

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"scores": row.tolist()} for row in self.model(torch.tensor(inputs))]


class Others(Words): ...


def words(**arguments: Any) -> Words:
    optimizer: Any = partial(torch.optim.SGD, lr=0.1)
    task = Words(adapter=Lora(targets="1", rank=2), optimizer=optimizer, **arguments)
    task.configure_model()
    disturb(task.model)
    return task


def test_a_scripts_task_is_saved_and_its_class_loads_it_with_what_it_was_built_with(tmp_path: Path) -> None:
    task = words(width=24, dropout=nn.Dropout(), seed=3)
    task.save(tmp_path / "adapter")
    loaded = Words.load(tmp_path / "adapter", device="cpu")
    assert loaded.predict([[1, 2, 3]]) == task.predict([[1, 2, 3]])
    assert (loaded.width, loaded.dropout, loaded.seed) == (24, None, 3), "what is no plain data is given anew"
    loaded.save(tmp_path / "again")
    again = Words.load(tmp_path / "again", device="cpu", seed=5)
    assert (again.seed, again.adapter.rank) == (5, 2)
    with pytest.raises(InputError, match=r"^E-ADAPTER: .* is of Words, a class that no plugin has: Words.load"):
        load(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"^E-ADAPTER: .* is of Words, and this is Others"):
        Others.load(tmp_path / "adapter")
    base = words(width=24).build_model()
    load_adapter(base, tmp_path / "adapter")
    assert base.eval()(torch.tensor([[1, 2, 3]]))[0].tolist() == task.predict([[1, 2, 3]])[0]["scores"]


def test_a_plugins_task_is_loaded_by_its_name(tiny_bert: str, tmp_path: Path) -> None:
    task = TextClassification(
        checkpoint=tiny_bert, labels=["a", "b"], max_length=16, adapter=Dora(targets="query"), pooling="auto"
    )
    task.configure_model()
    disturb(task.model)
    task.save(tmp_path / "adapter")
    expected = task.predict(["a fine film"])
    assert loralight.load(tmp_path / "adapter", device="cpu").predict(["a fine film"]) == expected
    assert TextClassification.load(tmp_path / "adapter", device="cpu").predict(["a fine film"]) == expected


def test_a_task_without_a_model_says_so_when_it_is_to_be_saved_or_to_predict(tmp_path: Path) -> None:
    task = Words(adapter=Lora(targets="1"))
    with pytest.raises(InputError, match=r"^E-UNBUILT: this Words has no model yet: .*configure_model\(\)"):
        task.save(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"^E-UNBUILT: "):
        task.predict([[1]])


def test_what_a_task_was_built_with_is_in_no_checkpoint_and_in_its_copies(tmp_path: Path) -> None:
    task = words(width=24)
    assert copy.deepcopy(task).arguments == {"width": 24}
    assert not any("arguments" in name for name in task.state_dict())
    FolderCheckpointIO().save_checkpoint({"state_dict": task.trainable_tensors()}, tmp_path / "checkpoint")
