"""Small models with random weights of the architectures in the registries of transformers and timm, and their trial.

A trial trains an architecture for two steps with the default settings, loads what was saved, merges it, and compares
loss and gradients with those of the plain library's model of the merged weights.
"""

import copy
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
import torch.nn.functional as F
import transformers
from timm.layers import DropPath
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as registry
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import loralight
from loralight import acceleration
from loralight.adapters import Lora, LoraLayer, merge
from loralight.adapters.layers.parameters import LoraParameters
from loralight.adapters.layers.tied import LoraTwin
from loralight.errors import InputError
from loralight.tasks.image_classification import ImageClassification
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration
from loralight.tasks.text_generation.data import IGNORED
from loralight.training.task import AdapterTask

WORDS = 120
CALM = ("dropout", "dropout_prob", "_pdrop", "dropout_rate", "layerdrop")  # ends of names of probabilities, set to 0
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "model_dim"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_dim", "lru_width", "hidden_size_global"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_experts_per_tok", "moe_k"), 2),
    "num_key_value_heads": 2,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "block_size"), 4),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "rotary_dim"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size", "mlp_hidden_size", "intermediate_size_mlp"), 64),
    "feed_forward_size": 64,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_intermediate_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_chunk_size", "state_size", "chunk_size", "ssm_state_size"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "index_head_dim", "index_topk", "attention_window"), 8),
    **dict.fromkeys(("qk_head_dim", "mamba_d_head", "mamba_head_dim", "attention_window_size", "sliding_window"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("linear_num_key_heads", "mamba_expand", "index_n_heads"), 2),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),  # as far from zero as trained weights are
    **{"num_kv_shared_layers": 0, "max_position_embeddings": 66, "n_positions": 64, "n_ctx": 64},
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")  # of each layer
OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"mask_token_id": 4, "token_dropout": False, "vocab_size": 128},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "funnel": {"architectures": ["FunnelModel"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "visual_embed": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"initializer_range": 0.02},  # nothing in it normalises: larger weights saturate the loss
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {"n_groups": 2},
    "qwen4_exp_text": {
        **{"ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2},
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8},
        **{"indexer_budget": 8, "indexer_compress_ratio": 4},
    },
    "perceiver": {
        **{"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
        **{"num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 32},
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 16], "attn_layers": ["local", "local"]},
    "t5": {"decoder_start_token_id": 0},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 2, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Sizes that must fit one another."""
ROWS = {"reformer": 64}
"""The length of a row that an architecture takes, where that is one alone with the sizes above."""
LIMITS: dict[str, str] = {
    **dict.fromkeys(
        ("emu3", "mllama"),
        "AutoModelForCausalLM does not load what the model for texts alone saves, as it does not know its config.",
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "It drafts for another model, and reads the states of that."
    ),
    "layoutlmv2": "It needs the package detectron2.",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "It writes sounds, in several vocabularies at once."),
}
"""Why the library itself runs an architecture not at all, or not on texts or images alone as they are here."""

SMALL_NAMES = ("test_", "atto", "femto", "pico", "nano", "xxxs", "xxs", "xx_small", "xxtiny", "_xs", "tiny")
SMALL_NAMES += ("18", "46_c", "_small", "_t", "_s")
FEWER: list[dict[str, Any]] = [
    {"depth": 2, "embed_dim": 48, "num_heads": 3},
    {"dim": 64, "depth": 2},
    {"depths": [1, 1, 1, 1]},
    {"layers": [1, 1, 1, 1]},
    {"num_features": 64},
    {},
]
"""Settings of smaller models, each of which some families have."""
IMAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "nest": {"drop_path_rate": 0.0},  # 0.5 by default: of two rows often both, in both steps
}
IMAGE_SIZES = {"efficientvit_msra": (224,)}
"""Sizes at which an attention has more than one place to look at."""
MAPPINGS: dict[str, Mapping[str, Any]] = {
    "text_generation": registry.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "text_classification": registry.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
LIBRARY = {
    "text_generation": AutoModelForCausalLM,
    "text_classification": transformers.AutoModelForSequenceClassification,
}


class NotRunError(Exception):
    """The plain library does not run an architecture as it is built here."""


# Random weights give these gradients of millions, or of millionths, which single precision rounds by up to 10 %,
# on some processors; in double precision they agree to a millionth.
IN_DOUBLE = {"hieradet_sam2", "hrnet", "iformer", "inception_v3", "pnasnet", "repvit"}


def found() -> Iterator[tuple[str, str]]:
    """Each task with each architecture that it may train."""
    for task, mapping in MAPPINGS.items():
        yield from ((task, name) for name in sorted(mapping))
    yield from (("image_classification", family) for family in timm.list_modules())


def config_of(kind: type[Any], depth: int = 0, own: Mapping[str, Any] | None = None, *, is_full: bool = False) -> Any:
    """A config of a class with small sizes, and of each kind of layer one.

    Args:
        kind: the class.
        depth: of a config within others.
        own: settings that must be these.
        is_full: whether sizes that are not set by default, or by another name, are set too.
    """
    usual = kind()
    given = usual.to_dict()
    other_names = kind.attribute_map if is_full else {}
    sizes = {
        name: size
        for name, size in SIZES.items()
        if (key := other_names.get(name, name)) in given and (is_full or given[key] is not None)
    }
    sizes |= {name: token for name, token in TOKENS.items() if name in given}
    sizes |= {name: 0.0 for name, value in given.items() if isinstance(value, float) and name.endswith(CALM)}
    if given.get("kv_lora_rank"):
        sizes["num_key_value_heads"] = 4
    layers = {name: list(dict.fromkeys(given[name])) for name in KINDS if isinstance(given.get(name), list | tuple)}
    num_layers = max([2, *map(len, layers.values())])
    sizes |= {name: num_layers for name in ("num_hidden_layers", "n_layer", "num_layers") if name in sizes}
    layers = {name: (kinds * num_layers)[:num_layers] for name, kinds in layers.items() if kinds}
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(usual, name, None)
        if part is not None and depth < 3:
            its_own = OWN.get(type(part).model_type)
            sizes[name] = config_of(type(part), depth + 1, its_own, is_full=is_full).to_dict()
    try:
        return kind(**{**sizes, **layers, **(own or {})})
    except Exception:  # it finds the kinds of layers by itself
        return kind(**{**sizes, **(own or {})})


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """One of words."""
    marks = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[MASK]"]
    numbers = {word: number for number, word in enumerate([*marks, *(f"w{number}" for number in range(WORDS))])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    around = {"single": "[BOS] $A [EOS]", "pair": "[BOS] $A [EOS] $B [EOS]"}
    made.post_processor = processors.TemplateProcessing(**around, special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    names = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    names |= {"cls_token": "[BOS]", "sep_token": "[EOS]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@torch.no_grad()
def live_(model: nn.Module) -> None:
    """Draw anew what is zero in a model that has never been trained, so that gradients reach all that is before it."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)


def still_(model: nn.Module) -> nn.Module:
    """Switch off what is drawn at random in training, which no two libraries draw alike."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | DropPath):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "drop_prob", 0.0)
        if isinstance(getattr(module, "drop_rate", None), float):  # of the function, as in GhostNet
            module.drop_rate = 0.0  # type: ignore[assignment]
    return model


def write_text_model(task: str, name: str, folder: Path) -> None:
    """A checkpoint of a type of transformers: the language model, or the base that classifiers are put on.

    Raises:
        NotRunError: the library does not build it, or it computes nothing on texts.
    """
    first: Exception | None = None
    for is_full in (False, True):
        try:
            return _write_text_model(task, name, folder, is_full=is_full)
        except Exception as error:
            first = first or error
    raise NotRunError(LIMITS.get(name) or _told(first)) from first


def _write_text_model(task: str, name: str, folder: Path, *, is_full: bool) -> None:
    torch.manual_seed(0)
    kind: Any = AutoModelForCausalLM if task == "text_generation" else AutoModel
    ids = 5 + torch.arange(2 * ROWS.get(name, 8)).view(2, -1) % WORDS
    ids[:, -1] = TOKENS["eos_token_id"]
    config = config_of(CONFIG_MAPPING[name], own=OWN.get(name), is_full=is_full)
    if hasattr(config, "is_decoder") and task == "text_generation":
        config.is_decoder = True
    model = kind.from_config(config)
    live_(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    plain = LIBRARY[task].from_pretrained(folder).train()
    settings = {"use_cache": False} if task == "text_generation" else {}  # as in training
    plain(input_ids=ids, attention_mask=torch.ones_like(ids), **settings).logits.sum().backward()


def _told(error: Exception | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def write_image_model(family: str, folder: Path) -> int:
    """A checkpoint of the architecture in a family of timm whose name says that it is small; returns its image size."""
    names = timm.list_models(module=family)
    order = sorted(names, key=lambda name: next((n for n, s in enumerate(SMALL_NAMES) if s in name), len(SMALL_NAMES)))
    usual = timm.get_pretrained_cfg(order[0])
    first: Exception | None = None
    own_size = 224 if usual is None else usual.input_size[-1]
    for less, size in itertools.product(FEWER, IMAGE_SIZES.get(family, (64, 96, 224, 256, own_size))):
        is_fixed = usual is not None and usual.fixed_input_size
        settings = {**IMAGE_SETTINGS.get(family, {}), **less}
        try:
            _write_image_model(order[0], folder, size, settings, {"img_size": size} if is_fixed else {})
            return size
        except TypeError as error:  # it has no such setting
            first = first or error
        except Exception as error:
            first = error
    raise NotRunError(LIMITS.get(family) or _told(first)) from first


def _write_image_model(name: str, folder: Path, size: int, less: dict[str, Any], sized: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **less, **sized)
    live_(model)
    model.eval()(torch.rand(1, 3, size, size))
    model.register_state_dict_post_hook(_untie)
    config = {"pretrained_cfg": {"input_size": (3, size, size), "num_classes": 7}}
    save_for_hf(model, str(folder), model_config=config, model_args=less, safe_serialization=True)


def _untie(_: nn.Module, state: dict[str, Tensor], *__: Any) -> None:
    """Write a tensor that layers share for each, as those checkpoints have it."""
    state.update({name: tensor.clone() for name, tensor in state.items()})


def task_of(kind: str, folder: Path, size: int) -> AdapterTask:
    """A task with the default accelerations, not built yet."""
    names = ("Unpadding", "FirstTokens", "ChannelsLast", "DropoutMasks", "FusedRMSNorms", "FrozenBatchNorms")
    names += ("FrozenProducts", "SelectiveRecompute")
    settings: dict[str, Any] = {
        "checkpoint": str(folder),
        "adapter": Lora(targets="all" if kind == "image_classification" else "all-linear", rank=2),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "accelerations": {name: getattr(acceleration, name)() for name in names},
    }
    if kind == "text_generation":
        return TextGeneration(**settings, samples=0)
    if kind == "text_classification":
        return TextClassification(**settings, labels=["a", "b", "c"], max_length=32)
    return ImageClassification(**settings, labels=["a", "b", "c"], image_size=size)


def batch_of(kind: str, task: Any, size: int) -> dict[str, Tensor]:
    """Rows of different lengths, or images."""
    random = torch.Generator().manual_seed(1)
    if kind == "image_classification":
        return {"images": torch.rand(2, 3, size, size, generator=random), "labels": torch.tensor([0, 2])}
    if kind == "text_generation":
        ids = torch.randint(5, WORDS, (2, 9), generator=random)
        return {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    rows = [[f"w{number}" for number in range(start, start + length)] for start, length in ((3, 12), (40, 8))]
    encoded = task.tokenizer([" ".join(row) for row in rows], padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([0, 2])}


def filled_up(batch: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """A batch with padding up to a number of tokens."""
    if "input_ids" not in batch or batch["input_ids"].shape[1] >= width:
        return batch
    ids = batch["input_ids"]
    fills = {"targets": IGNORED}
    batch = {"attention_mask": torch.ones_like(ids), **batch}
    return {
        key: F.pad(tensor, (0, width - ids.shape[1]), value=fills.get(key, 0)) if tensor.shape == ids.shape else tensor
        for key, tensor in batch.items()
    }


def updates(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The layer and the part of it that has A and B, by the name of the weight that they change."""
    layers = {f"{name}.weight": (layer, layer) for name, layer in model.named_modules() if _is_single(layer)}
    read = {name: module for name, module in model.named_modules() if isinstance(module, LoraParameters)}
    return layers | {f"{name}.{key}": (one, part) for name, one in read.items() for key, part in one.lora.items()}


def _is_single(layer: nn.Module) -> bool:
    return isinstance(layer, LoraLayer) and not isinstance(layer, LoraTwin)


def loss_and_gradients(task: AdapterTask, batch: Any, wanted: list[nn.Parameter]) -> tuple[Tensor, list[Tensor | None]]:
    """Of a training step."""
    torch.manual_seed(0)
    with task.accelerations.step(task.model):
        loss = task.step(batch).loss
    return loss.detach(), list(torch.autograd.grad(loss, wanted, allow_unused=True))


def trial(kind: str, name: str, folder: Path) -> None:
    """Train, load, merge and compare; whatever is wrong is raised.

    Raises:
        NotRunError: the plain library does not run it.
        InputError: loralight refuses it.
    """
    base, size = folder / "base", 0
    if kind == "image_classification":
        size = write_image_model(name, base)
    else:
        write_text_model(kind, name, base)
    task = task_of(kind, base, size)
    task.configure_model()
    batch = batch_of(kind, task, size)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(task, torch.utils.data.DataLoader([batch] * 3, batch_size=None))  # type: ignore[arg-type]
    dtype = torch.float64 if name in IN_DOUBLE else torch.float32
    still_(task.train()).to(dtype)
    batch = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in batch.items()}
    layers = updates(task.model)
    factors = [factor for _, part in layers.values() for factor in (part.lora_A, part.lora_B)]
    loss, gradients = loss_and_gradients(task, batch, factors)
    kept = {key: (part.lora_A.detach().clone(), part.lora_B.detach().clone()) for key, (_, part) in layers.items()}
    scales = {key: part.scaling for key, (_, part) in layers.items()}
    as_matrix = {key: _as_matrix(layer) for key, (layer, _) in layers.items()}
    if dtype is torch.float32:  # as a task is loaded
        _check_loading(task, batch, folder)
    norms = [name for name, part in task.model.named_modules() if isinstance(part, _BatchNorm) and part.training]
    task.accelerations.detach_(task.model)
    merge(task.model)
    task.save_pretrained(_made(folder / "merged"))
    task.model = still_(library_model(kind, folder / "merged")).to(dtype)
    for norm in norms:  # of a new head
        task.model.get_submodule(norm).train()
    weights = [task.model.get_parameter(key).requires_grad_() for key in layers]
    plain_loss, plain = loss_and_gradients(task, filled_up(batch, ROWS.get(name, 0)), weights)
    assert torch.allclose(loss, plain_loss, rtol=1e-3, atol=1e-4), (loss, plain_loss)
    for number, (key, gradient) in enumerate(zip(layers, plain, strict=True)):
        found_A, found_B = gradients[2 * number : 2 * number + 2]
        assert (gradient is None) == (found_A is None and found_B is None), key
        if gradient is None or found_A is None or found_B is None:
            continue
        matrix, (a, b) = as_matrix[key](gradient), kept[key]
        _check_close(key, found_A.flatten(1), scales[key] * b.flatten(1).T @ matrix)
        _check_close(key, found_B.flatten(1), scales[key] * matrix @ a.flatten(1).T)


def _as_matrix(layer: Any) -> Any:
    return layer.as_matrix if isinstance(layer, LoraLayer) and layer.weight.ndim == 2 else lambda w: w.flatten(1)


def _check_close(key: str, given: Tensor, wanted: Tensor) -> None:
    difference, size = float((given - wanted).norm()), float(wanted.norm())
    relative, absolute = (1e-5, 1e-9) if given.dtype is torch.float64 else (5e-3, 1e-5)
    assert difference <= relative * size + absolute, (key, difference, size)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_loading(task: AdapterTask, batch: Any, folder: Path) -> None:
    """An adapter that is loaded again computes the same."""
    task.save(folder / "adapter")
    loaded = loralight.load(folder / "adapter", device="cpu")
    with torch.no_grad(), task.evaluating():
        expected = task.step(copy.copy(batch)).loss
    with torch.no_grad():
        given = loaded.step(copy.copy(batch)).loss
    assert torch.allclose(given, expected, rtol=1e-5, atol=1e-6), (given, expected)


def library_model(kind: str, folder: Path) -> nn.Module:
    """The plain library's model of a folder, as it is in training; BatchNorm as it is in evaluation."""
    if kind == "image_classification":
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return model.eval().requires_grad_(False)
    model = LIBRARY[kind].from_pretrained(folder)
    return model.train().requires_grad_(False)


def outcome(kind: str, name: str, folder: Path) -> tuple[str, str]:
    """``trains``, or ``refused`` or ``not run here`` with the reason."""
    try:
        trial(kind, name, folder)
    except NotRunError as error:
        return "not run here", str(error)
    except InputError as error:
        return "refused", " ".join(str(error).split())
    return "trains", ""


PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_ENTRY = re.compile(r"^\| `(?P<kind>\w+)` \| (?P<result>[a-z ]+) \| (?P<names>.*?) \|(?P<why>.*)\|$")


def versions() -> str:
    """Those that outcomes depend on."""
    of_torch = torch.__version__.partition("+")[0]
    return f"transformers {transformers.__version__}, timm {timm.__version__}, torch {of_torch}"


def told() -> tuple[str, dict[tuple[str, str], tuple[str, str]]]:
    """The versions of the page, and what it says of each task and architecture: the result and its reason."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    said = next(line for line in lines if line.startswith("Found with "))
    entries = [found for line in lines if (found := _ENTRY.match(line))]
    return said.removeprefix("Found with ").rstrip("."), {
        (entry["kind"], name.strip("`")): (entry["result"], entry["why"].strip())
        for entry in entries
        for name in entry["names"].split(", ")
    }


def is_of_the_commit(kind: str, name: str) -> bool:
    """Whether an architecture is of the tenth that each commit tries."""
    return zlib.crc32(f"{kind} {name}".encode()) % 10 == 0
