"""Adapters go to PEFT and come back, on all four tasks: every tensor bit for bit, and both compute the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import loralight
from loralight.adapters import Lora, LoraLayer
from loralight.adapters.base import trainable
from loralight.artifacts.export import save_adapter
from loralight.config.build import build_data, build_task, build_trainer, task_class
from loralight.config.composition import compose, plain
from loralight.errors import InputError
from loralight.training.task import AdapterTask

from .tasks.image_classification.conftest import random_model
from .tasks.text_generation.conftest import FAMILIES, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

WEIGHTS = "adapter_model.safetensors"


class Case(NamedTuple):
    """A task's plugin with its arguments, PEFT's names for task and targets, and two layers to treat apart."""

    task: str
    arguments: dict[str, Any]
    kind: str | None
    targets: list[str] | str
    patterned: tuple[str, str]


ENCODER = (["query", "value", "intermediate.dense"], ("layer.1.attention.self.query", "intermediate.dense"))
CASES = {
    "text_classification": Case("text_classification", {"labels": ["a", "b", "c"]}, "SEQ_CLS", *ENCODER),
    "ner": Case("ner", {"labels": ["person", "place"], "max_length": 64}, "TOKEN_CLS", *ENCODER),
    "Llama": Case("text_generation", {}, "CAUSAL_LM", r".*\.(q_proj|down_proj)", (r"layers\.1\..*q_proj", "down_proj")),
    "GPT2": Case("text_generation", {}, "CAUSAL_LM", ["c_attn", "c_fc"], ("^transformer.h.0.attn.c_attn", "c_fc")),
    "image_classification": Case(
        "image_classification", {"labels": ["a", "b", "c"]}, None, ["0.conv1", "conv2"], ("layer2.0.conv1", "conv2")
    ),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def checkpoint(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a case's base model."""
    parent = tmp_path_factory.mktemp("bases")

    def folder(name: str) -> str:
        path = parent / name
        if CASES[name].task in ("text_classification", "ner"):
            return tiny_bert
        if not path.exists() and CASES[name].task == "text_generation":
            config = getattr(transformers, f"{name}Config")(vocab_size=300, **FAMILIES[name])
            model = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
            torch.manual_seed(0)
            getattr(transformers, model)(config).save_pretrained(path)
            make_tokenizer().save_pretrained(path)
        elif not path.exists():
            path.mkdir()
            save_file(random_model("test_resnet").state_dict(), path / "model.safetensors")
            config = {"architecture": "test_resnet", "num_classes": 7, "input_size": [3, 32, 32]}
            (path / "config.json").write_text(json.dumps(config))
        return str(path)

    return folder


def make(name: str, base: str, adapter: Lora) -> AdapterTask:
    """A task of ours as after training."""
    case = CASES[name]
    task = task_class({"task": {"name": case.task}})(checkpoint=base, adapter=adapter, **case.arguments)
    task.configure_model()
    disturb(task.model)
    return task.eval()


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def export(task: AdapterTask, name: str, base: str, folder: Path) -> Path:
    arguments = {**CASES[name].arguments, "checkpoint": base}
    recipe = {
        "task": {"name": CASES[name].task, "arguments": arguments},
        "adapter": {"name": "lora", "arguments": {"targets": task.adapter.targets, "rank": task.adapter.rank}},  # type: ignore[attr-defined]
    }
    save_adapter(task, folder, recipe=recipe, metrics={})
    return folder


def train_with_peft(name: str, base: str, folder: Path, dtype: torch.dtype, **config: Any) -> nn.Module:
    """A model as PEFT trains it, saved as PEFT saves it."""
    case = CASES[name]
    plain = make(name, base, Lora(targets="all", rank=1))
    model = plain.build_model()
    heads = {id(part) for part in plain.head(model)}
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": case.targets,
        "rank_pattern": {case.patterned[0]: 2},
        "alpha_pattern": {case.patterned[1]: 6, case.patterned[0]: 3},
        "modules_to_save": [name for name, module in model.named_modules() if id(module) in heads] or None,
        "task_type": case.kind,
        "fan_in_fan_out": name == "GPT2",
    }
    wrapped = get_peft_model(model, LoraConfig(**{**settings, **config}))  # type: ignore[arg-type]
    disturb(wrapped)
    with torch.no_grad():
        for parameter in trainable(wrapped).values():
            parameter.copy_(parameter.to(dtype))
    wrapped.save_pretrained(str(folder))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    return wrapped.eval()


def load(name: str, folder: Path, base: str, **more: Any) -> AdapterTask:
    """As a person would, who names the task where PEFT's type does not."""
    case = CASES[name]
    task = None if case.kind else case.task
    return loralight.load(folder, base=base, task=task, arguments=case.arguments, device="cpu", **more)


def outputs(model: nn.Module) -> Tensor:
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        if hasattr(model, "get_classifier"):
            return torch.as_tensor(model(torch.randn(4, 3, 32, 32, generator=random)))
        return torch.as_tensor(model(input_ids=torch.randint(5, 250, (3, 9), generator=random)).logits)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).norm() <= 3e-6 * wanted.norm()


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_what_peft_trained_computes_the_same_here_and_goes_back_bit_for_bit(
    checkpoint: Callable[[str], str], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base = checkpoint(name)
    theirs = train_with_peft(name, base, tmp_path / "theirs", dtype)
    task = load(name, tmp_path / "theirs", base)
    assert isinstance(task.adapter, Lora)
    assert_close(outputs(task.model), outputs(theirs))
    assert len({(layer.rank, layer.alpha) for layer in task.model.modules() if hasattr(layer, "lora_A")}) == 3
    before = load_file(tmp_path / "theirs" / WEIGHTS)
    after = load_file(export(task, name, base, tmp_path / "ours") / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor.float()) for key, tensor in before.items())
    again = PeftModel.from_pretrained(task.build_model(), str(tmp_path / "ours")).eval()  # type: ignore[arg-type]
    assert_close(outputs(again), outputs(theirs))


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_what_we_trained_computes_the_same_in_peft_and_comes_back_bit_for_bit(
    checkpoint: Callable[[str], str], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base = checkpoint(name)
    targets = "all-conv" if name == "image_classification" else "all-linear"
    first = make(name, base, Lora(targets=targets, rank=4)).adapted[targets][0]
    adapter = Lora(targets=targets, rank=4, rank_pattern={first: 3}, alpha_pattern={first: 1.5})
    task = make(name, base, adapter)
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter.copy_(parameter.to(dtype))
    export(task, name, base, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(task.build_model(), str(tmp_path / "ours")).eval()  # type: ignore[arg-type]
    assert_close(outputs(loaded), outputs(task.model))
    loaded.save_pretrained(str(tmp_path / "theirs"))
    back = load(name, tmp_path / "theirs", base)
    before, after = task.trainable_tensors(), back.trainable_tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert torch.equal(outputs(back.model), outputs(task.model))


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True, "rank_pattern": {}},
        {"target_modules": "all-linear", "rank_pattern": {"^bert.encoder.layer.1.output.dense": 3}},
        {"layers_to_transform": [1], "alpha_pattern": {"query": 2}, "rank_pattern": {}},
        {"init_lora_weights": "gaussian", "exclude_modules": ["layer.0.attention.self.query"]},
        {"use_dora": True},
    ],
    ids=["rslora", "all-linear", "some layers", "exclusion", "DoRA"],
)
def test_what_a_config_says_is_what_is_computed(
    checkpoint: Callable[[str], str], tmp_path: Path, config: dict[str, Any]
) -> None:
    base = checkpoint("text_classification")
    theirs = train_with_peft("text_classification", base, tmp_path, torch.float32, **config)
    assert_close(outputs(load("text_classification", tmp_path, base).model), outputs(theirs))


@pytest.fixture(scope="module")
def of_peft(checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that PEFT wrote, and its base model."""
    folder, base = tmp_path_factory.mktemp("of_peft"), checkpoint("text_classification")
    train_with_peft("text_classification", base, folder, torch.float32)
    return folder, base


def test_it_predicts_with_the_labels_that_are_given(of_peft: tuple[Path, str]) -> None:
    folder, base = of_peft
    (answer,) = load("text_classification", folder, base).predict(["a fine film"])
    assert set(answer["probabilities"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": None}, "E-PEFT: .*which base model"),
        ({"arguments": {}}, "E-PEFT: PEFT's folder does not say labels, .*arguments.labels="),
        ({"task": "ner"}, "E-PEFT: task=ner is for adapters of the type TOKEN_CLS; this one is of 'SEQ_CLS'"),
        ({"task": "nothing"}, "E-TASK: there is no task 'nothing'"),
        ({"arguments": {"labels": ["a", "b"]}}, "E-ADAPTER-KEYS: .*classifier.*has shape"),
        ({"arguments": {"labels": ["a"], "labls": ["a"]}}, "E-CONFIG: .*no argument 'labls'.*'labels'"),
    ],
)
def test_what_the_user_leaves_out_or_gets_wrong_is_asked_for(
    of_peft: tuple[Path, str], given: dict[str, Any], message: str
) -> None:
    folder, base = of_peft
    arguments = {"base": base, "arguments": {"labels": ["a", "b", "c"]}, **given}
    with pytest.raises(InputError, match=f"^{message}"):
        loralight.load(folder, **arguments)


def test_a_folder_of_ours_says_itself_what_its_task_is(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    base = checkpoint("text_classification")
    export(
        make("text_classification", base, Lora(targets="query", rank=2)), "text_classification", base, tmp_path / "a"
    )
    with pytest.raises(InputError, match=r"^E-ADAPTER: .*leave out task and arguments"):
        loralight.load(tmp_path / "a", task="ner")


def test_the_command_line_predicts_and_evaluates_with_it(
    of_peft: tuple[Path, str], in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, base = of_peft
    (tmp_path / "in.txt").write_text("a fine film\n")
    (tmp_path / "test.csv").write_text("text,label\na fine film,b\na dull film,c\n")
    (tmp_path / "train.csv").write_text("text,label\na fine film,b\na dull film,c\nwhat,a\n")
    command = ("predict", f"run={folder}", "input=in.txt", f"checkpoint={base}", "arguments.labels=[a,b,c]")
    assert in_process(*command) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("a", "b", "c")
    found = in_process(
        *("evaluate", f"run={folder}", f"model.checkpoint={base}", "model.max_length=16", "trainer=cpu"),
        *(
            "data=text_classification",
            "data.train=train.csv",
            "data.test=test.csv",
            "data.labels=[a,b,c]",
            "output=metrics.json",
        ),
    )
    assert found == 0
    assert "test/accuracy" in json.loads((tmp_path / "metrics.json").read_text())


def test_training_computes_what_peft_in_a_plain_loop_does_from_the_same_start(
    tiny_run: list[str], tmp_path: Path
) -> None:
    overrides = [
        *tiny_run,
        "adapter.rank=4",
        "adapter.lr_rank=null",
        "task.head_lr=null",
        "task.base_dropout=false",
        "trainer.max_epochs=3",
        "~callbacks",
        "~logger",
    ]
    config = plain(compose("train", overrides))
    data = build_data(config)
    ours = build_task(config, data.model_arguments())
    start = {name: parameter.detach().clone() for name, parameter in trainable(ours.model).items()}
    theirs = build_task(config, data.model_arguments())
    base = theirs.build_model()
    heads = [name for name, module in base.named_modules() if any(module is part for part in theirs.head(base))]
    names = [name for name, module in ours.model.named_modules() if isinstance(module, LoraLayer)]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=names, modules_to_save=heads)
    theirs.model = get_peft_model(base, lora).get_base_model().eval()  # type: ignore[arg-type]
    for name, tensor in start.items():
        theirs.model.get_parameter(_in_peft(name)).data.copy_(tensor)

    build_trainer(config, tmp_path, []).fit(ours, datamodule=data)

    learning = list(trainable(theirs.model).values())
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config["optimizer"]["weight_decay"]},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config["optimizer"]["lr"])
    loader = data.train_dataloader()
    num_steps = 3 * len(loader)
    schedule = transformers.get_scheduler(
        "linear", optimizer, round(config["scheduler"]["warmup"] * num_steps), num_steps
    )
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in loader:
            optimizer.zero_grad()
            theirs.step(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, config["trainer"]["gradient_clip_val"])
            optimizer.step()
            schedule.step()
    for name, parameter in trainable(ours.model).items():
        moved = theirs.model.get_parameter(_in_peft(name)) - start[name]
        assert moved.norm() > 0
        torch.testing.assert_close(parameter - start[name], moved, rtol=1e-3, atol=1e-6, msg=name)


def _in_peft(name: str) -> str:
    owner, _, own = name.rpartition(".")
    return f"{owner}.{own}.default.weight" if own in ("lora_A", "lora_B") else f"{owner}.modules_to_save.default.{own}"
