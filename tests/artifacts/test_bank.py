"""Several trained adapters on one base model: each by itself, row by row in one batch, and summed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

import loralight
from loralight.acceleration.unpadding import padded
from loralight.adapters import Adapter, FullFineTuning, LinearProbe, Lora, LoraLayer, merge
from loralight.artifacts.bank import AdapterBank
from loralight.artifacts.export import save_adapter
from loralight.errors import InputError
from loralight.tasks.image_classification import ImageClassification
from loralight.tasks.ner import Ner
from loralight.tasks.text_classification import TextClassification
from loralight.training.task import AdapterTask

TEXTS = ["a fine film", "dull", "we hated every minute of it, every single one", "what a joy"]
Make = Callable[..., Path]
METHODS: dict[str, type[Adapter]] = {"lora": Lora, "full": FullFineTuning, "linear_probe": LinearProbe}
TASKS: dict[str, type[AdapterTask]] = {
    "text_classification": TextClassification,
    "ner": Ner,
    "image_classification": ImageClassification,
}


def write(folder: Path, kind: str, method: str, own: dict[str, Any], settings: dict[str, Any], seed: int) -> Path:
    """The folder of an adapter, as after training."""
    task = TASKS[kind](**own, adapter=METHODS[method](**settings))
    task.configure_model()
    torch.manual_seed(seed)
    for tensor in task.trainable_tensors().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) - 0.4, alpha=0.3)
    recipe = {"task": {"name": kind, "arguments": own}, "adapter": {"name": method, "arguments": settings}}
    save_adapter(task, folder, recipe=recipe, metrics={})
    return folder


@pytest.fixture(scope="module")
def make(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes the folder of an adapter for the tiny BERT."""
    seeds = iter(range(1000))

    def adapter(
        labels: tuple[str, ...] = ("bad", "good"), method: str = "lora", kind: str = "text_classification", **given: Any
    ) -> Path:
        own = {"checkpoint": given.pop("checkpoint", tiny_bert), "labels": list(labels), "max_length": 16}
        settings = {"targets": "all-linear", "rank": 2, **given} if method == "lora" else given
        own |= {"stride": 4} if kind == "ner" else {}
        return write(tmp_path_factory.mktemp("adapters") / "adapter", kind, method, own, settings, next(seeds))

    return adapter


@pytest.fixture(scope="module")
def folders(make: Make) -> dict[str, Path]:
    return {
        "films": make(),
        "food": make(("cold", "warm", "hot"), rank=3, alpha=2.0, targets=["query", "value"]),
        "third": make(("no", "yes"), rank=1, targets="mlp"),
    }


@pytest.fixture(scope="module")
def bank(folders: dict[str, Path]) -> AdapterBank:
    return loralight.load_many(folders, device="cpu")


@torch.no_grad()
def logits(model: nn.Module, task: AdapterTask, texts: list[str] = TEXTS) -> Tensor:
    assert isinstance(task, TextClassification)
    encoded = task.tokenizer(texts, padding=True, return_tensors="pt")
    return torch.as_tensor(model(**encoded).logits)


def bytes_held(*models: nn.Module) -> int:
    tensors = {id(t): t for model in models for t in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for storage in {t.data_ptr(): t.untyped_storage() for t in tensors.values()}.values())


def own_bytes(task: AdapterTask) -> int:
    return sum(tensor.nbytes for tensor in task.trainable_tensors().values())


def test_the_base_is_built_as_the_models_are_that_share_it(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=7), str(tmp_path / "resnet"), safe_serialization=True)
    own = {"checkpoint": str(tmp_path / "resnet"), "labels": ["a", "b", "c"]}
    folder = write(tmp_path / "1", "image_classification", "lora", own, {"targets": "all-conv", "rank": 2}, 1)
    torch.set_default_dtype(torch.bfloat16)  # as within Lightning's half precision
    try:
        bank = loralight.load_many({"one": folder}, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in bank.base.parameters()} == {torch.float32}


def test_each_adapter_predicts_what_it_does_when_loaded_alone(bank: AdapterBank, folders: dict[str, Path]) -> None:
    assert list(bank) == list(folders) and len(bank) == 3
    alone = {name: loralight.load(folder, device="cpu").predict(TEXTS) for name, folder in folders.items()}
    for name in [*folders, *reversed(folders)]:  # whichever came before
        assert bank[name].predict(TEXTS) == alone[name]
    assert {answer["label"] for answer in bank["food"].predict(TEXTS)} <= {"cold", "warm", "hot"}


def test_the_base_is_held_once(bank: AdapterBank) -> None:
    models = [task.model for task in bank.values()]
    head = sum(p.nbytes for p in (*bank.base.classifier.parameters(), *bank.base.bert.pooler.parameters()))
    base = bytes_held(bank.base)
    assert bytes_held(bank.base, *models) == base + sum(own_bytes(task) for task in bank.values())
    assert sum(own_bytes(task) for task in bank.values()) + head < base / 10


def test_the_base_stays_the_pretrained_model_bit_for_bit(bank: AdapterBank, tiny_bert: str, tmp_path: Path) -> None:
    for task in bank.values():
        task.predict(TEXTS)
    with bank.rows(["films", "food", None, "third"]) as model:
        logits(model, bank["films"])
    bank.combine({"films": 1.0}, output=tmp_path / "films")
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_bert).bert.eval()
    encoded = bank["films"].tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad(), padded():
        found, wanted = (bert(**encoded).last_hidden_state for bert in (bank.base.bert, fresh))
    assert torch.equal(found, wanted)
    assert not any(parameter.requires_grad for parameter in bank.base.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)], ids=str)
def test_rows_of_one_batch_have_their_own_adapters_and_heads(
    folders: dict[str, Path], dtype: torch.dtype, tolerance: float
) -> None:
    bank = loralight.load_many(folders, device="cpu")
    for model in (bank.base, *(task.model for task in bank.values())):
        model.to(dtype)
    names = ["food", "films", None, "third"]
    with bank.rows(names) as model:
        found = logits(model, bank["films"])
    assert found.shape == (4, 3) and found.dtype == dtype
    for row, name in zip(range(4), names, strict=True):
        alone = logits(bank.base if name is None else bank[name].model, bank["films"])[row]  # of the same padded batch
        assert (found[row, : len(alone)] - alone).abs().max() <= tolerance * alone.abs().max()
        assert (found[row, len(alone) :] == -torch.inf).all()


def test_adapters_of_other_methods_and_tasks_share_the_base_too(make: Make) -> None:
    made = {
        "lora": make(),
        "probe": make(method="linear_probe"),
        "full": make(method="full"),
        "names": make(("LOC", "PER"), kind="ner"),
    }
    bank = loralight.load_many(made, device="cpu")
    for name, folder in made.items():
        assert bank[name].predict(TEXTS) == loralight.load(folder, device="cpu").predict(TEXTS)
    embeddings = {
        name: task.model.get_parameter("bert.embeddings.word_embeddings.weight") for name, task in bank.items()
    }
    assert embeddings["lora"] is embeddings["probe"] is embeddings["names"]
    assert embeddings["full"] is not embeddings["lora"]
    with pytest.raises(InputError, match=r"^E-ROWS: 'names' is a BertForTokenClassification .* one class"):
        bank.rows(["lora", "names"])
    with pytest.raises(InputError, match=r"^E-KIND: .* is a Embedding in which weight learn"):
        bank.rows(["lora", "full"])
    with bank.rows(["probe", "lora"]) as model:
        found = logits(model, bank["lora"], TEXTS[:2])
    torch.testing.assert_close(found[0], logits(bank["probe"].model, bank["lora"], TEXTS[:2])[0])


def test_an_adapter_of_another_base_is_refused(make: Make, tiny_bert: str, tmp_path: Path) -> None:
    other = BertForMaskedLM.from_pretrained(tiny_bert)
    nn.init.normal_(other.bert.encoder.layer[1].output.dense.bias)
    other.save_pretrained(tmp_path)
    for file in Path(tiny_bert).glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"^E-BASE: .*layer\.1\.output\.dense\.bias has other values"):
        loralight.load_many({"one": make(), "other": make(checkpoint=str(tmp_path))}, device="cpu")


def test_names_are_taken_once_and_known_ones_are_told(bank: AdapterBank, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"^E-ADAPTER: no adapter is named"):
        loralight.load_many({})
    with pytest.raises(InputError, match=r"^E-ADAPTER: .* 'films' already"):
        bank.add("films", folders["films"])
    for mistaken in (lambda: bank.rows(["film"]), lambda: bank.combine({"film": 1.0}, output="x")):
        with pytest.raises(InputError, match=r"^E-NAME: no adapter is called 'film'\. Did you mean 'films'\?"):
            mistaken()


def updates(task: AdapterTask) -> dict[str, Tensor]:
    """``(alpha / rank) B A`` of each layer, in float64."""
    return {
        name: layer.alpha / layer.rank * layer.lora_B.detach().double() @ layer.lora_A.detach().double()
        for name, layer in task.model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def weighted(bank: AdapterBank, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The sum of updates, by the definition."""
    total: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for layer, update in updates(bank[name]).items():
            total[layer] = total.get(layer, torch.zeros_like(update)) + weight * update
    return total


@pytest.mark.parametrize(
    "weights",
    [
        {"films": 0.5, "food": 0.25, "third": 2.0},
        {"food": 1.0, "films": -0.7},
        {"third": 1.0},
        {"third": 0.0, "food": 1.0},
    ],
    ids=str,
)
def test_a_combination_is_the_weighted_sum_of_updates_with_the_head_of_the_first(
    bank: AdapterBank, weights: dict[str, float], tmp_path: Path
) -> None:
    errors = bank.combine(weights, output=tmp_path / "sum")
    task, first = loralight.load(tmp_path / "sum", device="cpu"), bank[next(iter(weights))]
    wanted = weighted(bank, {name: weight for name, weight in weights.items() if weight})
    assert errors == dict.fromkeys(wanted, 0.0)
    assert updates(task).keys() == wanted.keys()
    for layer, update in updates(task).items():
        assert (update - wanted[layer]).norm() <= 1e-6 * wanted[layer].norm()
    assert torch.equal(task.model.classifier.weight, first.model.classifier.weight)
    assert [a["probabilities"].keys() for a in task.predict(TEXTS)] == [
        a["probabilities"].keys() for a in first.predict(TEXTS)
    ]
    dense: Any = loralight.load(tmp_path / "sum", device="cpu").build_model()
    dense.load_state_dict(first.trainable_tensors(), strict=False)  # the head
    for layer, update in wanted.items():
        dense.get_parameter(f"{layer}.weight").data.add_(update)
    assert (logits(dense.eval(), first) - logits(task.model, first)).abs().max() <= 1e-5
    merge(task.model)
    assert (logits(dense.eval(), first) - logits(task.model, first)).abs().max() <= 1e-5


def test_a_combination_of_lower_rank_is_the_nearest_and_its_error_is_told(bank: AdapterBank, tmp_path: Path) -> None:
    weights = {"films": 1.0, "food": -0.5}
    errors = bank.combine(weights, output=tmp_path / "sum", rank=2)
    found, wanted = updates(loralight.load(tmp_path / "sum", device="cpu")), weighted(bank, weights)
    assert found.keys() == wanted.keys() == errors.keys()
    for layer, update in wanted.items():
        values = torch.linalg.svdvals(update)
        distance = (update - found[layer]).norm() / update.norm()
        assert float(distance) == pytest.approx(errors[layer], abs=1e-6)
        assert errors[layer] == pytest.approx(float(values[2:].norm() / values.norm()), abs=1e-6)
    assert {error > 0.01 for error in errors.values()} == {True, False}  # "food" adapts fewer layers


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
@torch.no_grad()
def test_peft_loads_a_combination_and_combines_to_the_same(bank: AdapterBank, tiny_bert: str, tmp_path: Path) -> None:
    weights = {"films": 0.6, "food": 1.5}
    bank.combine(weights, output=tmp_path / "sum")
    task = loralight.load(tmp_path / "sum", device="cpu")
    wanted = logits(task.model, task)

    def pretrained() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2).eval()

    loaded = PeftModel.from_pretrained(pretrained(), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(loaded, task), wanted, rtol=0, atol=1e-5)

    base = pretrained()
    base.load_state_dict(bank["films"].trainable_tensors(), strict=False)  # the head
    theirs: Any = None
    for name in weights:
        layers = [found for found, layer in bank[name].model.named_modules() if isinstance(layer, LoraLayer)]
        some = bank[name].model.get_submodule(layers[0])
        config = LoraConfig(r=some.rank, lora_alpha=some.alpha, target_modules=layers)
        theirs = get_peft_model(base, config, name) if theirs is None else theirs
        if name not in theirs.peft_config:
            theirs.add_adapter(name, config)
        for layer in layers:
            for part in ("lora_A", "lora_B"):
                own = theirs.get_parameter(f"base_model.model.{layer}.{part}.{name}.weight")
                own.copy_(getattr(bank[name].model.get_submodule(layer), part))
    theirs.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type="cat")
    theirs.set_adapter("sum")
    torch.testing.assert_close(logits(theirs.eval(), task), wanted, rtol=0, atol=1e-5)


def test_names_of_layers_that_are_also_ends_of_others_or_presets_mean_themselves(tmp_path: Path) -> None:
    from loralight.artifacts.combination import _exactly

    names = ["0", "1.0", "mlp", "head"]
    patterns = {name: _exactly(name, names) for name in names}
    model = nn.ModuleDict({"0": nn.Linear(2, 2), "1": nn.Sequential(nn.Linear(2, 2)), "mlp": nn.Linear(2, 2)})
    for name in ("0", "1.0", "mlp"):
        adapted = Lora(targets=patterns[name]).apply_(model, dict(model.named_modules()))
        assert list(adapted.values()) == [[name]]
        merge(model)
    assert patterns["head"] == "head"


@pytest.mark.parametrize(
    ("weights", "settings", "code"),
    [
        ({}, {}, "E-WEIGHTS"),
        ({"films": 0.0}, {}, "E-WEIGHTS"),
        ({"films": float("nan")}, {}, "E-WEIGHTS"),
        ({"films": 1.0}, {"rank": 0}, "E-RANK"),
        ({"films": 1.0}, {"output": "."}, "E-OUTPUT"),
    ],
    ids=str,
)
def test_a_combination_that_makes_no_sense_is_refused(
    bank: AdapterBank, tmp_path: Path, weights: dict[str, float], settings: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError, match=f"^{code}: "):
        bank.combine(weights, **{"output": tmp_path / "sum", **settings})
    assert not (tmp_path / "sum").exists()


def test_adapters_without_low_rank_updates_have_no_sum(make: Make, tmp_path: Path) -> None:
    probes = loralight.load_many({"probe": make(method="linear_probe"), "full": make(method="full")}, device="cpu")
    for name in probes:
        with pytest.raises(InputError, match=r"^E-KIND: "):
            probes.combine({name: 1.0}, output=tmp_path / "sum")


def test_a_combination_says_what_it_was_made_of(bank: AdapterBank, tmp_path: Path) -> None:
    bank.combine({"films": 1, "third": -2}, output=tmp_path / "sum", rank=3)
    recipe = json.loads((tmp_path / "sum" / "loralight.json").read_text())
    assert recipe["combination"] == {"weights": {"films": 1, "third": -2}, "rank": 3}
    assert recipe["adapter"]["arguments"]["targets"] == "all-linear"  # the first one's, which cover the other's


def test_a_combination_takes_over_nothing_that_validation_rows_of_one_model_settled(make: Make, tmp_path: Path) -> None:
    bank = loralight.load_many({"a": make(), "b": make()}, device="cpu")
    bank._recipes["a"]["task"]["settled"] = {"temperature": 2.0}
    bank.combine({"a": 1.0, "b": 1.0}, output=tmp_path / "sum")
    found: Any = loralight.load(tmp_path / "sum", device="cpu")
    assert (found.settled, found.temperature) == ({}, 1.0)


def test_batchnorm_statistics_and_convolutions_are_each_adapters_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet", num_classes=7), str(tmp_path / "resnet"), safe_serialization=True)
    own = {"checkpoint": str(tmp_path / "resnet"), "labels": ["a", "b", "c"]}
    settings = {"targets": "all-conv", "rank": 2}
    made = {
        "followed": write(
            tmp_path / "1", "image_classification", "lora", {**own, "batch_norm": "statistics"}, settings, 1
        ),
        "learnt": write(tmp_path / "2", "image_classification", "lora", {**own, "batch_norm": "affine"}, settings, 2),
        "frozen": write(tmp_path / "3", "image_classification", "lora", own, {**settings, "rank": 4}, 3),
    }
    bank = loralight.load_many(made, device="cpu")
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        alone = {name: loralight.load(folder, device="cpu").model(x) for name, folder in made.items()}
        for name, task in bank.items():
            assert torch.equal(task.model(x), alone[name])
        names = ["learnt", "followed", "frozen", "learnt"]
        with bank.rows(names) as model:
            found = model(x)
    for row, name in enumerate(names):
        assert (found[row] - alone[name][row]).abs().max() <= 1e-5 * alone[name].abs().max()
    bank.combine({"followed": 0.5, "frozen": 0.5}, output=tmp_path / "sum")
    combined = loralight.load(tmp_path / "sum", device="cpu").model.state_dict()
    norms = [key for key in combined if key.endswith("running_mean")]
    assert norms and all(torch.equal(combined[key], bank["followed"].model.state_dict()[key]) for key in norms)
