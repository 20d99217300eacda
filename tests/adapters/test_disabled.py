"""With its adapter disabled a model computes what its base does, bit for bit, and only as long as the context lasts."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from loralight.acceleration import Accelerations, Facts
from loralight.acceleration.gradient_checkpointing import recompute_
from loralight.adapters import (
    IA3,
    AdaLora,
    Adapter,
    BitFit,
    Dora,
    FullFineTuning,
    Houlsby,
    LastLayers,
    LinearProbe,
    Lora,
    LoraFA,
    NormTuning,
    Parallel,
    PeftMethod,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    Vera,
    as_computed,
    disabled,
    inject,
    merge,
    trainable,
)
from loralight.adapters.multi.parts import parts_of
from loralight.adapters.multi.rows import by_rows
from loralight.config.build import make
from loralight.config.composition import compose, plain
from loralight.errors import InputError
from loralight.training.frozen_modes import choose_modes_

from ..warm import CONTEXT

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
ENDS = {"bos_token_id": None, "eos_token_id": None}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: BertForSequenceClassification(BertConfig(**SIZES)),  # dropout 0.1
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, **ENDS)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1)),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2)),
    "ResNet": lambda: timm.create_model("test_resnet", zero_init_last=False),
    "ViT": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, proj_drop_rate=0.1
    ),
    "attention": lambda: nn.Sequential(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)),
}
ADDING: dict[str, tuple[str, Adapter]] = {
    "LoRA": ("BERT", Lora(targets="all-linear", rank=2, dropout=0.1)),
    "LoRA of all settings": ("BERT", Lora(targets="all-linear", rank=2, rank_dropout=0.2, use_rslora=True)),
    "PiSSA": ("BERT", Lora(targets="all-linear", rank=2, init="pissa")),
    "LoRA on Conv1D": ("GPT-2", Lora(targets="all-linear", rank=2)),
    "LoRA of slices": ("GPT-2", Lora(targets="c_attn", rank=2, slices={"c_attn": "qv"})),
    "LoRA on tied embeddings": ("GPT-2", Lora(targets="embedding", rank=2, dropout=0.1)),
    "LoRA on experts": ("Mixtral", Lora(targets="experts", rank=2)),
    "LoRA on convolutions": ("ResNet", Lora(targets="all", rank=2)),
    "LoRA on attention": ("attention", Lora(targets="self_attn", rank=2)),
    "LoRA on an encoder's linear layers": ("attention", Lora(targets=["linear1", "linear2"], rank=2)),
    "LoRA-FA": ("BERT", LoraFA(targets="all-linear", rank=2)),
    "DoRA": ("BERT", Dora(targets="all", rank=2)),
    "DoRA on convolutions": ("ResNet", Dora(targets="all", rank=2)),
    "AdaLoRA": ("BERT", AdaLora(targets="all-linear")),
    "VeRA": ("GPT-2", Vera(targets="all-linear", rank=4)),
    "IA3": ("GPT-2", IA3()),
    "IA3 on Llama": ("Llama", IA3()),
    "Pfeiffer": ("BERT", Pfeiffer()),
    "Houlsby": ("BERT", Houlsby(train_norms=False)),
    "Pfeiffer on convolutions": ("ResNet", Pfeiffer()),
    "Parallel": ("GPT-2", Parallel()),
    "prefix tuning": ("BERT", PrefixTuning(num_tokens=3)),
    "prefix tuning of a decoder": ("Llama", PrefixTuning(num_tokens=3)),
    "prompt tuning": ("BERT", PromptTuning(num_tokens=3)),
    "prompt tuning of a decoder": ("Llama", PromptTuning(num_tokens=3)),
}
IN_PLACE: dict[str, tuple[str, Adapter]] = {
    "BitFit": ("BERT", BitFit()),
    "NormTuning": ("BERT", NormTuning()),
    "FullFineTuning": ("BERT", FullFineTuning()),
    "LastLayers": ("BERT", LastLayers()),
    "Houlsby": ("BERT", Houlsby(train_norms=True)),
    "PeftMethod": ("BERT", PeftMethod(targets="all-linear")),
}


def pair(name: str, adapter: Adapter) -> tuple[nn.Module, nn.Module]:
    """A plain model, and the same with an adapter that is far from where it starts."""
    torch.manual_seed(0)
    base = MODELS[name]()
    model = copy.deepcopy(base)
    inject(model, adapter)
    disturb_(model)
    return base.requires_grad_(False), model


@torch.no_grad()
def disturb_(model: nn.Module) -> None:
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)


def batch(model: nn.Module) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    if not hasattr(model, "config"):
        is_image = not isinstance(model, nn.Sequential)
        return {"x" if is_image else "input": torch.randn((2, 3, 32, 32) if is_image else (2, 5, 32), generator=random)}
    ids = torch.randint(1, 50, (4, 9), generator=random)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7], [2]])).long()
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: nn.Module, given: dict[str, Any] | None = None) -> Tensor:
    """What a model gives, with its dropout drawn alike."""
    torch.manual_seed(3)
    y = model(**(given or batch(getattr(model, "module", model))))
    return y if isinstance(y, Tensor) else torch.as_tensor(y.logits)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ADDING)
def test_the_base_computes_bit_for_bit(name: str, mode: str, gradients: bool) -> None:
    base, model = pair(*ADDING[name])
    for one in (base, model):
        one.train(mode == "train")
        for norm in one.modules():
            norm.training &= not isinstance(norm, nn.BatchNorm2d)  # as a task keeps it
    with torch.set_grad_enabled(gradients):
        expected, adapted = outputs(base), outputs(model)
        assert not torch.equal(adapted, expected)
        with disabled(model):
            found = outputs(model)
        assert torch.equal(found, expected)
        assert torch.equal(outputs(model), adapted), "and none of it stays"
    assert not found.requires_grad, "no gradient goes to the adapter"


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", ["LoRA", "LoRA on Conv1D", "IA3 on Llama", "LoRA on convolutions", "Pfeiffer"])
def test_under_the_accelerations_the_base_computes_as_it_would_under_them(name: str, mode: bool) -> None:
    given, found = pair(*ADDING[name])
    made = [accelerated(model, mode) for model in (given, found)]
    assert made[0].on == made[1].on
    with torch.no_grad():
        expected = outputs(given)
        with disabled(found):
            assert torch.equal(outputs(found), expected)
    if mode:  # a step that computes both, with gradients: what is rounded otherwise then is in either of them
        with made[1].step(found):
            loss = outputs(found).square().mean()
            with disabled(found):
                reference = outputs(found)
        torch.testing.assert_close(reference, outputs(given), rtol=1e-5, atol=1e-5)
        (loss + reference.square().mean()).backward()
        grads = {key: parameter.grad for key, parameter in trainable(found).items()}
        found.zero_grad()
        outputs(found).square().mean().backward()
        for key, parameter in trainable(found).items():
            torch.testing.assert_close(grads[key], parameter.grad, rtol=1e-5, atol=1e-6)


def accelerated(model: nn.Module, mode: bool) -> Accelerations:
    """Those of the default config, on a model that is to be trained."""
    config = plain(compose("train", ["task=text_classification"]).acceleration)
    accelerations = Accelerations({key: make(node) for key, node in config.items()})
    model.train(mode)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    facts = Facts(model=model, still=norms, fixed=norms)
    accelerations.attach_(facts)
    accelerations.start_(facts)
    accelerations.switch_(mode)
    return accelerations


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_method_that_trains_the_base_itself_is_refused_by_its_name(name: str) -> None:
    _, model = pair(*IN_PLACE[name])
    with pytest.raises(InputError, match=rf"^E-DISABLED: {name} trains .*, which cannot be switched off"):
        disabled(model).__enter__()


def test_a_batch_norm_that_follows_the_data_is_refused() -> None:
    model = MODELS["ResNet"]()
    inject(model, Lora(targets="all", rank=2))
    choose_modes_(model, [], base_dropout=True, batch_norm="statistics")
    with pytest.raises(InputError, match=r"^E-DISABLED: batch_norm=statistics trains .*BatchNorm2d"):
        disabled(model).__enter__()


def test_a_head_that_learns_is_as_it_is() -> None:
    torch.manual_seed(0)
    base = MODELS["BERT"]().eval()
    model = copy.deepcopy(base)
    inject(model, Lora(targets="query", rank=2), head=[model.get_submodule("classifier")])
    disturb_(model)
    base.get_submodule("classifier").load_state_dict(model.get_submodule("classifier").state_dict())
    with disabled(model):
        assert torch.equal(outputs(model), outputs(base))
    probe = MODELS["BERT"]().eval()
    inject(probe, LinearProbe(), head=[probe.get_submodule("classifier")])
    expected = outputs(probe)
    with disabled(probe):
        assert torch.equal(outputs(probe), expected)


def test_a_merged_model_is_its_own_base() -> None:
    _, model = pair(*ADDING["LoRA"])
    merge(model.eval())
    expected = outputs(model)
    with disabled(model):
        assert torch.equal(outputs(model), expected)


def test_contexts_may_be_nested_and_end_with_an_exception() -> None:
    base, model = pair(*ADDING["LoRA on Conv1D"])
    other_base, other = pair(*ADDING["IA3"])
    for one in (base, model, other_base, other):
        one.eval()
    adapted = outputs(model), outputs(other)
    with disabled(model):
        assert torch.equal(outputs(other), adapted[1]), "another model keeps its adapter"
        with pytest.raises(KeyError), disabled(other), disabled(model):
            assert torch.equal(outputs(model), outputs(base)) and torch.equal(outputs(other), outputs(other_base))
            raise KeyError
        assert torch.equal(outputs(model), outputs(base)) and torch.equal(outputs(other), adapted[1])
    assert torch.equal(outputs(model), adapted[0])


def test_a_part_of_a_model_can_be_disabled_alone() -> None:
    _, model = pair(*ADDING["LoRA on Conv1D"])
    half = copy.deepcopy(model.eval())
    with torch.no_grad():
        for parameter in trainable(half.get_submodule("transformer.h.1")).values():
            parameter.zero_()
    with disabled(model.get_submodule("transformer.h.1")):
        torch.testing.assert_close(outputs(model), outputs(half))


@torch.no_grad()
def test_threads_ask_one_model_with_its_adapter_and_without() -> None:
    base, model = pair(*ADDING["LoRA"])
    expected = [outputs(one.eval()) for one in (model, base)]
    begin = Barrier(4)

    def ask(number: int) -> bool:
        begin.wait()
        found = []
        for _ in range(20):
            if number % 2:
                with disabled(model):
                    found.append(model(**batch(model)).logits)
            else:
                found.append(model(**batch(model)).logits)
        return all(torch.equal(one, expected[number % 2]) for one in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


@torch.no_grad()
def test_rows_with_adapters_of_their_own_are_the_base_s() -> None:
    base, model = pair(*ADDING["LoRA"])
    base.eval(), model.eval()
    expected = outputs(base)
    for outer, inner in [(0, 1), (1, 0)]:
        contexts = by_rows(base, {"a": parts_of(model, ())}, ["a", None, "a", "a"]), disabled(base)
        with contexts[outer], contexts[inner]:
            assert torch.equal(outputs(base), expected)
    with by_rows(base, {"a": parts_of(model, ())}, ["a"] * 4):
        torch.testing.assert_close(outputs(base), outputs(model), rtol=1e-4, atol=5e-5)


def embedded(model: nn.Module) -> dict[str, Any]:
    """A batch whose embeddings require gradients, so that all blocks are computed again."""
    given = batch(model)
    vectors = torch.randn(*given.pop("input_ids").shape, 32, generator=torch.Generator().manual_seed(2))
    return {**given, "inputs_embeds": vectors.requires_grad_()}


def gradients(model: nn.Module, *, off: bool, backward_off: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Of what goes in, and of what learns; the adapter is off in the forward pass, the backward pass, or both."""
    given = embedded(model)
    with disabled(model if off else nn.Module()):
        loss = outputs(model, given).square().mean()
    with disabled(model if backward_off else nn.Module()):
        loss.backward(retain_graph=True)
        loss.backward()  # once more: all is computed again
    found = {name: p.grad for name, p in trainable(model).items() if p.grad is not None}
    model.zero_grad()
    return given["inputs_embeds"].grad, found


@pytest.mark.parametrize("backward_off", [False, True])
@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("name", ["LoRA", "IA3 on Llama", "prefix tuning"])
def test_what_is_computed_again_in_the_backward_pass_is_computed_as_it_was(
    name: str, off: bool, backward_off: bool
) -> None:
    _, model = pair(*ADDING[name])
    expected = gradients(model.train(), off=off, backward_off=False)
    recompute_(model, [])
    found = gradients(model, off=off, backward_off=backward_off)
    assert found[1].keys() == expected[1].keys() and bool(found[1]) != off
    for again, first in [(found[0], expected[0]), *((found[1][name], one) for name, one in expected[1].items())]:
        # MKL's products hang in their last bit on where in memory their operands lie, on processors with AVX2 alone
        assert (again - first).norm() <= 1e-5 * first.norm()


def test_a_checkpoint_of_one_s_own_is_told_by_its_context() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, Lora(targets="0", rank=2))
    disturb_(model)
    x = torch.randn(3, 4, requires_grad=True)
    with disabled(model):
        y: Any = checkpoint(lambda given: model(given).tanh(), x, use_reentrant=False, context_fn=as_computed)
        expected = torch.autograd.grad(model(x).tanh().sum(), x)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_what_timm_would_compute_again_with_its_adapter_is_refused() -> None:
    base, model = pair("ViT", Lora(targets="all-linear", rank=2))
    recompute_(model.train(), [])
    with disabled(model):
        with pytest.raises(InputError, match=r"^E-DISABLED: acceleration=gradient_checkpointing .*no_grad"):
            outputs(model)
        with torch.no_grad():
            assert torch.equal(outputs(model), outputs(base.train()))
    outputs(model).sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_computes_its_base_too(backend: str) -> None:
    base, model = pair(*ADDING["LoRA on Conv1D"])
    base.eval(), model.eval()
    compiled: Any = torch.compile(model, backend=backend)
    adapted = outputs(compiled, batch(model))
    for one in (compiled, model):
        with disabled(one):
            assert torch.equal(outputs(compiled, batch(model)), outputs(base))
    assert torch.equal(outputs(compiled, batch(model)), adapted)


def test_a_compiled_model_that_recomputes_its_blocks_computes_its_base_too() -> None:
    base, model = pair(*ADDING["IA3 on Llama"])
    recompute_(model.train(), [])
    given = {"input_ids": batch(model)["input_ids"], "use_cache": False}
    compiled: Any = torch.compile(model, backend="aot_eager")
    outputs(compiled, given).square().mean().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
    with torch.no_grad(), disabled(compiled):
        assert torch.equal(outputs(compiled, given), outputs(base.train(), given))


def test_compiled_code_that_would_disable_an_adapter_is_refused() -> None:
    base, model = pair(*ADDING["LoRA on Conv1D"])

    def both(**given: Any) -> Tensor:
        with disabled(model):
            reference = model(**given).logits
        return torch.as_tensor(model(**given).logits - reference)

    compiled: Any = torch.compile(both, backend="eager")
    with pytest.raises(InputError, match=r"^E-DISABLED: .*compile the model alone"):
        compiled(**batch(model))
    torch.compiler.reset()
    with disabled(model):
        assert torch.equal(outputs(model.eval()), outputs(base.eval()))


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    base, model = pair(*ADDING["LoRA"])
    around = DistributedDataParallel(model.train())
    given = batch(model)
    own: dict[str, Any] = {name: tensor[rank * 2 : rank * 2 + 2] for name, tensor in given.items()}
    torch.manual_seed(3)
    loss = around(**own).logits.square().mean()
    with torch.no_grad(), disabled(around):
        is_base = torch.equal(outputs(around, own), outputs(base.train(), own))
    loss.backward()
    grads = {name: p.grad for name, p in trainable(model).items()}
    torch.save((is_base, grads), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_in_each_of_two_processes_the_base_computes_and_gradients_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the processes import this module by its name
    mp.start_processes(_in_process, (str(tmp_path),), nprocs=2, start_method=CONTEXT.get_start_method())
    (first, one), (second, two) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first and second
    assert all(torch.equal(one[name], two[name]) and one[name].any() for name in one)
