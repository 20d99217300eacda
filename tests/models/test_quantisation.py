"""Quantised bases: what is packed, what computes, what learns, and which adapters they take."""

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft.utils.loftq_utils
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, pipeline

import loralight
from loralight.adapters import Adapter, Dora, FullFineTuning, Lora, LoraFA, PeftMethod, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.quantised import LoraQuantisedLinear
from loralight.adapters.methods.last_layers import LastLayers
from loralight.config.build import adapter_classes, build_task
from loralight.config.composition import compose, plain
from loralight.errors import InputError
from loralight.logs import human
from loralight.models.quantisation import QuantisedLinear, as_before, quantised_
from loralight.models.quantisers import QUANTISERS, Quantiser
from loralight.tasks.text_classification import TextClassification
from loralight.testing.adapters import TinyBert
from loralight.training.preflight import before_activations, memory_table, num_bytes

OPTIONAL = list(QUANTISERS)


class Coarse(Quantiser):
    """4 bits a weight in a byte each, a scale for each output: a method of a stranger's."""

    module = "torch"

    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Any]:
        scale = weight.abs().amax(1, keepdim=True) / 7
        return {"codes": (weight / scale).round().to(torch.int8), "scale": scale}, None

    def unpack(self, tensors: Mapping[str, Tensor], context: Any) -> Tensor:
        return tensors["codes"] * tensors["scale"]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(QUANTISERS, "coarse", Coarse())


@pytest.fixture(params=["coarse", *OPTIONAL])
def method(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(QUANTISERS[name].module, reason="the library is an optional extra")
    return name


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64, bias=False), nn.Linear(64, 3))


def adapted(method: str | None, adapter: Any, model: nn.Sequential | None = None) -> nn.Sequential:
    model = net() if model is None else model
    with quantised_(model, method, head=[model[3]]):
        inject(model, adapter, head=[model[3]])
    return model


def dequantised(model: nn.Sequential) -> nn.Sequential:
    """A plain model with the weights that a quantised one computes with."""
    plain = copy.deepcopy(model)
    for layer in plain:
        if isinstance(layer, QuantisedLinear):
            layer.merge_()
    return plain


def disturb(model: nn.Module) -> None:
    for parameter in trainable(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.mark.parametrize("kind", [Lora, Dora, LoraFA])
def test_outputs_and_gradients_are_those_of_the_dequantised_base(method: str, kind: Any) -> None:
    original = net()
    with quantised_(quantised := copy.deepcopy(original), method, head=[quantised[3]]):
        pass
    plain, adapter = dequantised(quantised), kind(targets=["0", "2"], rank=4)
    assert 0 < (plain[0].weight - original[0].weight).norm() < 0.15 * original[0].weight.norm()
    ours, theirs = (copy.deepcopy(model) for model in (quantised, plain))
    for model in (ours, theirs):
        inject(model, adapter, head=[model[3]])
    assert type(ours[0]).plain is QuantisedLinear
    x = torch.randn(5, 64)
    assert torch.equal(ours(x), quantised(x)), "at step 0 it is the quantised base"
    disturb(ours)
    theirs.load_state_dict(
        {name: tensor for name, tensor in ours.state_dict().items() if ".packed_" not in name}, strict=False
    )
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(given) for model, given in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for y in outputs:
        y.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-6)
    for name, parameter in trainable(ours).items():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_the_head_and_all_that_learns_are_never_quantised(method: str) -> None:
    model = adapted(method, Lora(targets="0", rank=4))
    assert [type(layer) for layer in model] == [LoraQuantisedLinear, nn.Tanh, QuantisedLinear, nn.Linear]
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert set(trainable(model)) == {"0.lora_A", "0.lora_B", "3.weight", "3.bias"}


def language_model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=False, **sizes)).eval()


@pytest.mark.parametrize("kind", ["Llama", "a ViT of timm"])
def test_whole_models_of_transformers_and_timm_compute_what_their_merged_selves_do(kind: str) -> None:
    llama = kind == "Llama"
    model: nn.Module = language_model() if llama else timm.create_model("test_vit", num_classes=3).eval()
    given = torch.randint(50, (2, 7)) if llama else torch.randn(2, 3, 160, 160)
    with quantised_(model, "coarse", head=[] if llama else [model.get_classifier()]):
        inject(model, Lora(targets="all-linear", rank=2), head=[])
    disturb(model)
    merge(merged := copy.deepcopy(model))
    assert not any(isinstance(module, QuantisedLinear) for module in merged.modules())
    with torch.no_grad():
        outputs = [one(given).logits if llama else one(given) for one in (model, merged)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    if llama:
        written = [one.generate(given, max_new_tokens=5, do_sample=False, pad_token_id=0) for one in (model, merged)]
        assert torch.equal(*written)


def test_output_embeddings_and_shared_weights_stay_as_they_are() -> None:
    model = language_model()
    with quantised_(model, "coarse"):
        pass
    assert type(model.lm_head) is nn.Linear
    assert {type(m) for name, m in model.named_modules() if name.endswith("_proj")} == {QuantisedLinear}
    pair: Any = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    pair[1].weight = pair[0].weight
    with quantised_(pair, "coarse"):
        pass
    assert [type(layer) for layer in pair] == [nn.Linear, nn.Linear, QuantisedLinear]


def test_it_takes_the_bytes_that_it_promises_and_the_reports_count_the_parameters_that_there_were(method: str) -> None:
    plain, model = nn.Sequential(nn.Linear(512, 512)), nn.Sequential(nn.Linear(512, 512))
    with quantised_(model, method):
        pass
    expected = {"torchao/int8": 1.0, "coarse": 1.0}.get(method, 0.5 + 1 / 64)
    packed = num_bytes(model.parameters()) - 512 * 4  # the bias
    assert packed / 512**2 == pytest.approx(expected, rel=0.02)
    assert num_bytes(as_before(model)) == num_bytes(plain.parameters())


def test_no_unpacked_weight_is_kept_for_the_backward_pass(method: str) -> None:
    model, sizes = adapted(method, Lora(targets="0", rank=4)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        model(torch.randn(2, 64))
    assert max(sizes) < 64 * 96


def test_merged_it_is_a_plain_model_of_the_unpacked_weights_with_the_updates_in_them(method: str) -> None:
    plain, model = net(), adapted(method, Lora(targets="0", rank=4))
    disturb(model)
    x, base = torch.randn(5, 64), dequantised(model)
    expected, weight = model(x), base[2].weight
    update = model[0].scaling * model[0].lora_B @ model[0].lora_A
    wanted = model[0].unpacked() + update
    merge(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [vars(a).keys() == vars(b).keys() and type(a) is type(b) for a, b in zip(model, plain, strict=True)]
    torch.testing.assert_close(model[0].weight, wanted)
    assert torch.equal(model[2].weight, weight)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_moved_to_a_short_dtype_the_packed_weight_stays_what_it_was(method: str) -> None:
    model = adapted(method, Lora(targets="0", rank=4))
    before = model[0].unpacked()
    model.to(torch.bfloat16)
    assert torch.equal(model[0].unpacked(), before)
    assert model[0].lora_A.dtype is torch.bfloat16 and model(torch.randn(2, 64).bfloat16()).dtype is torch.bfloat16


def test_it_computes_under_autocast_and_copies(method: str) -> None:
    model = adapted(method, Lora(targets="0", rank=4))
    x = torch.randn(2, 64, requires_grad=True)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16 and x.grad is not None and x.grad.dtype is torch.float32


METHODS = sorted(adapter_classes())


@pytest.mark.parametrize("adapter", METHODS)
def test_every_method_trains_beside_a_quantised_base_or_says_that_it_cannot(adapter: str) -> None:
    config = compose("train", [f"adapter={adapter}"])
    tiny = {"_target_": "loralight.testing.adapters.TinyBert", "quantize": "coarse"}
    try:
        task = build_task({"adapter": plain(config["adapter"]), "task": tiny, "seed": 0}, {})
    except InputError as error:
        assert str(error).startswith("E-QUANTIZE: ") and "task.quantize" in str(error)
        return
    assert any(isinstance(module, QuantisedLinear) for module in task.model.modules())
    batch = {"input_ids": torch.randint(1, 100, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    task.step({**batch, "labels": torch.tensor([0, 1, 2])}).loss.backward()
    assert all(p.grad is not None for p in trainable(task.model).values())


@pytest.mark.parametrize("adapter", [FullFineTuning(), LastLayers()], ids=lambda adapter: type(adapter).__name__)
def test_methods_that_train_the_weights_themselves_are_refused(adapter: Adapter) -> None:
    task = TinyBert(adapter=adapter, quantize="coarse")
    with pytest.raises(InputError, match=r"^E-QUANTIZE: this adapter trains weights that task.quantize"):
        task.configure_model()


def test_peft_s_own_layers_are_never_put_around_quantised_ones() -> None:
    with pytest.raises(InputError, match=r"^E-QUANTIZE: task.quantize keeps the weight of 0 in a few bits"):
        adapted("coarse", PeftMethod(targets="0", method="LOHA"))


def test_the_command_line_tells_of_an_unknown_method_before_it_reads_a_model(refused: Callable[..., str]) -> None:
    Path("rows.jsonl").write_text('{"text": "a fine film", "label": "good"}\n' * 9)
    Path("config.json").write_text("not JSON")
    line = ("model.checkpoint=.", "data=text_classification", "data.train=rows.jsonl")
    told = refused("train", "task.quantize=bitsandbytes/nf3", *line)
    assert "E-QUANTIZE" in told and "Did you mean 'bitsandbytes/nf4'" in told


@pytest.mark.parametrize("given", ["nf4", "torchao/int4"])
def test_an_unknown_method_is_refused_with_those_there_are(given: str) -> None:
    with pytest.raises(InputError, match=r"^E-QUANTIZE: task.quantize=.*choose torchao/int8, bitsandbytes/nf4"):
        adapted(given, Lora(targets="0"))


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    model = net()
    with pytest.raises(InputError, match=r'^E-PACKAGE: .*bitsandbytes.*pip install "loralight\[bitsandbytes\]"'):
        adapted("bitsandbytes/nf4", Lora(targets="0"), model)
    assert type(model[0]) is nn.Linear


def test_a_model_without_linear_layers_outside_its_head_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    why = r"^E-QUANTIZE: .*Sequential has no nn.Linear outside its head"
    with pytest.raises(InputError, match=why), quantised_(model, "coarse", head=[model[1]]):
        pass


def test_loftq_starts_at_the_best_approximation_of_what_quantising_took_off(method: str) -> None:
    original = net()
    model = adapted(method, Lora(targets="0", rank=8, init="loftq"), copy.deepcopy(original))
    layer = model[0]
    weight = original[0].weight.detach()
    left = (weight - layer.unpacked() - layer.scaling * layer.lora_B @ layer.lora_A).norm()
    residual = (weight - layer.unpacked()).double()
    values = torch.linalg.svdvals(residual)
    assert left < (weight - layer.unpacked()).norm()
    torch.testing.assert_close(left.double(), values[8:].norm(), rtol=1e-4, atol=1e-7)  # Eckart and Young, 1936
    theirs = peft.utils.loftq_utils._low_rank_decomposition(residual.float(), reduced_rank=8)
    ours = layer.scaling * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(ours, theirs["L"] @ theirs["R"], rtol=1e-3, atol=1e-6)
    assert layer.original is None, "what it was is not kept in memory"


def test_loftq_without_a_quantised_base_is_refused() -> None:
    with pytest.raises(InputError, match=r"^E-INIT: adapter.init=loftq .*task.quantize="):
        adapted(None, Lora(targets="0", init="loftq"))


def test_nf4_is_what_transformers_and_peft_compute_with() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="the library is an optional extra")
    plain = nn.Linear(64, 96)
    theirs = bnb.nn.Linear4bit(64, 96, quant_type="nf4", compress_statistics=True)
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    model = nn.Sequential(plain)
    x = torch.randn(5, 64)
    with quantised_(model, "bitsandbytes/nf4"):
        pass
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_a_run_is_trained_resumed_loaded_evaluated_and_merged(
    in_process: Callable[..., int], tiny_bert: str, texts: Path, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    line = ["data=text_classification", f"data.path='{texts}'", f"model.checkpoint='{tiny_bert}'", "trainer=cpu"]
    line += ["model.max_length=16", "optimizer.lr=0.01", "task.quantize=coarse", "adapter.init=loftq"]
    assert in_process("train", *line, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    recipe = json.loads((tmp_path / "run" / "adapter" / "loralight.json").read_text())
    assert recipe["task"]["arguments"]["quantize"] == "coarse"
    assert recipe["adapter"]["arguments"]["init"] == "kaiming", "the factors hold what LoftQ began with"
    task = loralight.load("run", device="cpu")
    layers = [module for module in task.model.modules() if isinstance(module, LoraQuantisedLinear)]
    assert len(layers) == 12
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["parameters"]["total"] == sum(p.numel() for p in as_before(task.model))
    assert summary["bytes"]["model"] < 4 * summary["parameters"]["total"]
    assert in_process("evaluate", "run=run", "trainer=cpu") == 0
    assert in_process("merge", "run=run", "output=merged", "device=cpu") == 0
    certificate = json.loads((tmp_path / "merged" / "merge_certificate.json").read_text())
    assert certificate["within_tolerance"] and certificate["outputs"]["relative_error"] < 2e-6
    assert len(certificate["update_lost"]["layers"]) == 12, "of each update it says what the dtype loses"
    told = [answer["probabilities"] for answer in task.predict(["a fine film", "what a mess"])]
    pipe = pipeline("text-classification", str(tmp_path / "merged"), top_k=None, device="cpu")
    for ours, theirs in zip(told, pipe(["a fine film", "what a mess"]), strict=True):
        assert ours == pytest.approx({one["label"]: one["score"] for one in theirs}, abs=1e-5)
    other = {**recipe, "task": {**recipe["task"], "arguments": {**recipe["task"]["arguments"], "quantize": None}}}
    rewrite(tmp_path / "run" / "adapter", lambda folder: (folder / "loralight.json").write_text(json.dumps(other)))
    with pytest.raises(InputError, match=r"^E-BASE: "):
        loralight.load("run", device="cpu")


def test_peft_loads_the_adapter_beside_the_dequantised_base() -> None:
    model, adapter = adapted("coarse", Lora(targets=["0", "2"], rank=4)), Lora(targets=["0", "2"], rank=4)
    disturb(model)
    config = {**(adapter.peft_config(model) or {})}
    assert config.pop("peft_type") == "LORA"
    plain_base = copy.deepcopy(model)
    for layer in plain_base:
        if isinstance(layer, LoraQuantisedLinear):
            weight = layer.weight
            layer.strip_()
            layer.become_plain_(weight)
    theirs: Any = get_peft_model(plain_base, LoraConfig(**config))
    names = adapter.peft_names(model)
    state = {f"base_model.model.{names[n]}": p.detach() for n, p in trainable(model).items() if n in names}
    assert not set_peft_model_state_dict(theirs, state).unexpected_keys
    x = torch.randn(3, 64)
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_memory_table_counts_packed_bytes_against_the_whole_model() -> None:
    task = TinyBert(adapter=Lora(targets="all-linear"), quantize="coarse")
    task.configure_model()
    unpacked = num_bytes(as_before(task.model))
    weights = next(
        zip(*(column.cells for column in memory_table(*before_activations(task), title="").columns), strict=True)
    )
    assert weights == ("weights", human(num_bytes(task.model.parameters())), human(unpacked))
    assert num_bytes(task.model.parameters()) < 0.8 * unpacked


def test_adapters_of_one_quantised_base_share_it_and_serve_rows_of_one_batch(tiny_bert: str, tmp_path: Path) -> None:
    own = {"checkpoint": tiny_bert, "labels": ["bad", "good"], "max_length": 16, "quantize": "coarse"}
    for name in "ab":
        task = TextClassification(adapter=Lora(targets="all-linear", rank=2), **own)
        task.configure_model()
        disturb(task.model)
        task.save(tmp_path / name)
    bank = loralight.load_many({name: tmp_path / name for name in "ab"}, device="cpu")
    ours, theirs = ([m for m in model.modules() if isinstance(m, QuantisedLinear)] for model in (bank["a"], bank["b"]))
    assert all(
        one.get_parameter(part) is two.get_parameter(part)
        for one, two in zip(ours, theirs, strict=True)
        for part in one.parts
    )
    batch = bank["a"].tokenizer(["a fine film"] * 3, return_tensors="pt")
    with bank.rows(["b", "a", None]) as model, torch.no_grad():
        mixed = model(**batch).logits
    for row, single in enumerate((bank["b"].model, bank["a"].model, bank.base)):
        torch.testing.assert_close(mixed[row], single(**batch).logits[row], rtol=1e-4, atol=1e-5)
