"""Methods of PEFT: what learns is what PEFT says, PEFT loads what is saved, and merging is PEFT's own."""

import builtins
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import loralight
from loralight.adapters import Dora, PeftMethod, inject, merge
from loralight.adapters.base import trainable
from loralight.artifacts.export import save_adapter
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # of LN_TUNING's only kind
    pytest.mark.filterwarnings(
        "ignore:Failed to load the CUDA extension|Setting boft_n"
    ),  # BOFT's, which has another way
]

METHODS: dict[str, dict[str, Any]] = {
    "LOHA": {"r": 4, "alpha": 8},
    "LOKR": {"r": 4},
    "OFT": {},
    "BOFT": {"boft_block_size": 4},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {},
    "FOURIERFT": {"n_frequency": 50},
    "HRA": {"r": 4},
    "LORA": {"r": 4, "use_dora": True},
}
STARTS_ELSEWHERE = {"FOURIERFT", "HRA"}  # random spectra; reflections in pairs, which cancel up to rounding


def adapter_of(method: str) -> PeftMethod:
    targets = "*LayerNorm" if method == "LN_TUNING" else ["*.query", "*.output.dense"]
    return PeftMethod(method=method, targets=targets, arguments=METHODS[method])


def make(method: str, checkpoint: str) -> TextClassification:
    torch.manual_seed(0)
    task = TextClassification(checkpoint=checkpoint, labels=["a", "b"], max_length=16, adapter=adapter_of(method))
    task.configure_model()
    return task.eval()


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(1000, 2000, (4, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).norm() <= 3e-6 * wanted.norm()


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_only_what_peft_adds_beside_the_head_and_begins_at_the_base(method: str, tiny_bert: str) -> None:
    task = make(method, tiny_bert)
    model = task.build_model()
    torch.manual_seed(3)
    head = {id(parameter) for part in task.head(model) for parameter in part.parameters()}
    base, before = {id(parameter) for parameter in model.parameters()}, logits(model.eval())
    hits = inject(model, task.adapter, head=task.head(model))
    layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert sorted(layers) == sorted(name for found in hits.values() for name in found)
    learns = {id(parameter) for parameter in trainable(model).values()}
    assert learns & base == head and learns > head
    assert torch.equal(logits(model), before) or method in STARTS_ELSEWHERE


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_peft_and_loralight_load_with_the_same_outputs(
    method: str, tiny_bert: str, tmp_path: Path
) -> None:
    task = make(method, tiny_bert)
    disturb(task.model)
    own = {"checkpoint": tiny_bert, "labels": ["a", "b"], "max_length": 16}
    arguments = {"method": method, "targets": task.adapter.targets, "arguments": METHODS[method]}  # type: ignore[attr-defined]
    recipe = {
        "task": {"name": "text_classification", "arguments": own},
        "adapter": {"name": "peft", "arguments": arguments},
    }
    save_adapter(task, tmp_path / "adapter", recipe=recipe, metrics={})
    with_peft = PeftModel.from_pretrained(task.build_model(), str(tmp_path / "adapter")).eval()  # type: ignore[arg-type]
    assert_close(logits(with_peft), logits(task.model))
    loaded = loralight.load(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(loaded.model), logits(task.model))
    with_peft.save_pretrained(str(tmp_path / "theirs"))
    back = loralight.load(tmp_path / "theirs", base=tiny_bert, arguments={"labels": ["a", "b"]}, device="cpu")
    assert isinstance(back.adapter, Dora if method == "LORA" else PeftMethod), "a method of ours goes first"
    assert_close(logits(back.model), logits(task.model))


@pytest.mark.parametrize("method", METHODS)
def test_merging_is_peft_s_own_and_brings_the_plain_layers_back(method: str, tiny_bert: str) -> None:
    task = make(method, tiny_bert)
    disturb(task.model)
    before, plain = logits(task.model), task.build_model()
    merge(task.model)
    assert_close(logits(task.model), before)
    assert task.model.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in task.model.modules()] == [type(module) for module in plain.modules()]


def test_what_peft_cannot_merge_is_refused_before_any_change() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2)).eval()
    inject(model, PeftMethod(method="LORA", targets="all", arguments={"r": 4}))
    disturb(model)
    x = torch.randn(2, 4, 7, 7)
    before = model(x)
    with pytest.raises(InputError, match=r"^E-MERGE: PEFT cannot merge 1 \(Conv2d\)"):
        merge(model)
    assert torch.equal(model(x), before)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Conv1D(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(self.norm(self.first(x)).mean((2, 3))))


@pytest.mark.parametrize(("method", "targets"), [("LOHA", "all-conv"), ("LOKR", "first"), ("LORA", "all")])
def test_presets_mean_what_they_mean_for_lora(method: str, targets: str) -> None:
    model = Convolutions().eval()
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    found = inject(model, PeftMethod(method=method, targets=targets))
    assert found == {targets: ["first", "linear"] if targets == "all" else ["first"]}
    assert torch.equal(model(x), before)
    disturb(model)
    after = model(x)
    merge(model)
    assert_close(model(x), after)
    assert type(model.first) is nn.Conv2d


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "LOHO"}, "E-PEFT: PEFT has no method 'LOHO'. Did you mean .*'LOHA'"),
        ({"method": "loha"}, "E-PEFT: .*Did you mean 'LOHA'"),
        ({"method": "PROMPT_TUNING"}, "E-PEFT: PROMPT_TUNING adds to a model's inputs"),
        ({"method": "PREFIX_TUNING"}, "E-PEFT: PREFIX_TUNING adds to a model's inputs"),
        ({"method": "VERA"}, "E-PEFT: VERA .*shares tensors between layers"),
        ({"method": "ADALORA"}, "E-PEFT: ADALORA .*a training loop of its own"),
        ({"arguments": {"rank": 4}}, "E-PEFT: adapter.arguments.rank: LOHA has no such argument.*It has: .*alpha"),
        ({"arguments": {"aplha": 4}}, "E-PEFT: adapter.arguments.aplha: .*Did you mean 'alpha'"),
        ({"arguments": {"r": "4"}}, "E-PEFT: adapter.arguments.r: '4' is not an integer"),
        ({"arguments": {"target_modules": ["q"]}}, "E-PEFT: adapter.arguments.target_modules: adapter.targets says"),
        ({"arguments": {"modules_to_save": ["q"]}}, "E-PEFT: .*the task's head learns as a whole"),
        ({"arguments": {"rank_pattern": {"(a+)+$": 3}}}, "E-PEFT: .*no mapping of layers' names to numbers"),
        ({"method": "LORA", "arguments": {"init_lora_weights": "no"}}, "E-PEFT: "),
    ],
)
def test_what_peft_does_not_have_is_refused_before_a_model_is_loaded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        PeftMethod(**{"targets": "all-linear", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "norm"}, "E-PEFT: PEFT cannot inject LOHA: .*BatchNorm2d"),
        ({"targets": "all", "method": "LILY"}, "E-PEFT: LILY shares tensors between layers|E-PEFT: PEFT cannot inject"),
        ({"targets": "frist"}, "E-TARGET-NONE: .*'first'|E-TARGET-NONE: .*first"),
        ({"targets": "linear", "method": "LORA", "arguments": {"init_lora_weights": "pissa"}}, "E-PEFT: .*base model"),
        ({"targets": "first", "method": "HRA", "arguments": {"r": 0}}, "E-PEFT: PEFT cannot inject HRA"),
    ],
)
def test_what_does_not_go_with_a_model_is_one_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        inject(Convolutions(), PeftMethod(**settings))


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r'^E-PACKAGE: .*pip install "loralight\[peft\]"'):
        PeftMethod(targets="all")


def test_it_trains_from_the_command_line_and_predicts(
    tiny_run: Sequence[str], in_process: Callable[..., int], tmp_path: Path
) -> None:
    method = ("adapter=peft", "adapter.method=OFT", "+adapter.arguments.oft_block_size=4")
    assert in_process("train", *tiny_run, *method, "hydra.run.dir=run") == 0
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["oft_block_size"], config["task_type"]) == ("OFT", 4, "SEQ_CLS")
    assert loralight.load(tmp_path / "run", device="cpu").predict(["a fine film"])
    assert in_process("evaluate", "run=run") == 0
