"""An encoder that leaves out padding computes what transformers' own does with it, or is left as it is."""

import copy
import inspect
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loralight.acceleration import DropoutMasks, Facts, FirstTokens, Unpadding, unpadding
from loralight.acceleration.gradient_checkpointing import recompute_
from loralight.acceleration.lines import stack_of
from loralight.acceleration.ragged import ALL_TOKENS
from loralight.acceleration.unpadding import is_unpadded
from loralight.adapters import Adapter, Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.methods.prompt_tuning import PromptTuning
from loralight.config.build import make
from loralight.config.composition import compose, plain
from loralight.config.plugins import conf_folders
from loralight.kernels.dropout import CheapDropout
from loralight.models.blocks import blocks
from loralight.testing.adapters import TinyBert

METHODS = sorted(file.stem for folder in conf_folders() for file in folder.glob("adapter/*.yaml"))
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.2}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FIRSTS: dict[str, dict[str, Any]] = {  # their last block can compute first tokens alone
    "Bert": SIZES | CALM,
    "Roberta": SIZES | CALM | {"type_vocab_size": 1},
    "Electra": SIZES | CALM | {"embedding_size": 16, "summary_last_dropout": 0.0},
    "DistilBert": DISTIL | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
}
BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
T5 |= {"decoder_start_token_id": 0}
HALVES = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
BART = HALVES | {"vocab_size": 100, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.2}
DECODER = SIZES | {"num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "classifier_dropout": 0.0}
WINDOW = {"sliding_window": 5}
DISENTANGLED = SIZES | CALM | {"pos_att_type": ["p2c", "c2p"], "relative_attention": True, "share_att_key": True}
DISENTANGLED |= {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
FAMILIES = FIRSTS | {
    "Albert": SIZES | CALM | {"embedding_size": 16, "classifier_dropout_prob": 0.0},
    "ModernBert": SIZES | {"pad_token_id": 1, "local_attention": 8, "global_attn_every_n_layers": 2},
    "EuroBert": DECODER | {"pad_token_id": 1},
    "NomicBert": SIZES | CALM | {"head_dim": 16},
    "Esm": SIZES | CALM | {"pad_token_id": 1, "position_embedding_type": "rotary"},
    "DebertaV2": DISENTANGLED,
    "MPNet": SIZES | CALM,
    "T5": T5 | BUCKETS | {"classifier_dropout": 0.0},
    "Bart": BART | {"max_position_embeddings": 66, "dropout": 0.0},
    "MBart": BART | {"max_position_embeddings": 66, "dropout": 0.0},
    "Llama": DECODER,
    "Gemma": DECODER,
    "Qwen2": DECODER | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "Mistral": DECODER | WINDOW,
    "GPT2": {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 66, "pad_token_id": 0}
    | {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "classifier_dropout": 0.0},
}
OWN = ("DebertaV2", "MPNet")  # whose attention is their own
HEADS = ("SequenceClassification", "TokenClassification")
LENGTHS = [3, 20, 7, 1, 8, 20]


def is_of_this_version(family: str) -> bool:
    """Whether the installed transformers has the model, and its attention asks for a function."""
    kind = getattr(transformers, f"{family}Model", None)
    if kind is None or family in OWN:
        return kind is not None
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in inspect.getsource(inspect.getmodule(kind))


ON = [family for family in FAMILIES if is_of_this_version(family)]
WITH_HEADS = [(family, head) for family in ON for head in HEADS if hasattr(transformers, f"{family}For{head}")]


def why_not_unpadded(model: PreTrainedModel) -> str | None:
    return Unpadding().attach_(Facts(model=model))


def unpad_(model: PreTrainedModel) -> bool:
    return why_not_unpadded(model) is None


def read_first_(model: PreTrainedModel) -> bool:
    return FirstTokens().attach_(Facts(model=model)) is None


def model_of(family: str, head: str, **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}For{head}")
    config = kind.config_class(**(FAMILIES.get(family, SIZES) | {"num_labels": 3} | changed))
    model: PreTrainedModel = kind(config)
    return model


def batch_of(model: PreTrainedModel, lengths: list[int] = LENGTHS, *, left: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    padding = model.config.pad_token_id or 0
    ids = torch.randint(5, 100, mask.shape)
    if model.config.is_encoder_decoder:  # whose classifier reads the end of a text
        ids[torch.arange(len(mask)), (mask * torch.arange(mask.shape[1])).argmax(1)] = model.config.eos_token_id
    ids = ids.where(mask, torch.tensor(padding))
    return {"input_ids": ids, "attention_mask": mask.long()}


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and the logits of texts or of tokens that are none of padding."""
    logits = model(**batch).logits
    logits = logits[batch["attention_mask"].bool()] if logits.ndim == 3 else logits
    return F.cross_entropy(logits.float(), torch.arange(len(logits)) % 3), logits


def twins(model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and its like without padding, both with LoRA that does something."""
    for_lora = Lora(targets="all-linear", rank=4)
    inject(model, for_lora, head=[part for part in model.children() if part is not model.base_model])
    for name, parameter in trainable(model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    unpadded = copy.deepcopy(model)
    assert unpad_(unpadded)
    return model, unpadded


def assert_equal(
    unpadded: PreTrainedModel, padded: PreTrainedModel, batch: dict[str, Tensor], *, within: float = 1e-5
) -> None:
    """Outputs of each sample, gradients and, ten times as near, losses."""
    (found, logits), (expected, expected_logits) = loss_of(unpadded, batch), loss_of(padded, batch)
    torch.testing.assert_close(found, expected, rtol=within / 10, atol=within / 10)
    torch.testing.assert_close(logits, expected_logits, rtol=within, atol=within)
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    read = {name: p.grad for name, p in trainable(padded).items() if p.grad is not None}
    assert read.keys() == {name for name, p in trainable(unpadded).items() if p.grad is not None}
    assert read
    for name, wanted in read.items():
        gradient = unpadded.get_parameter(name).grad
        assert gradient is not None
        assert (gradient - wanted).norm() <= within * max(float(wanted.norm()), 1e-3), name


@pytest.mark.parametrize(("family", "head"), WITH_HEADS)
@pytest.mark.parametrize("left", [False, True], ids=["padding on the right", "padding on the left"])
def test_outputs_loss_and_gradients_are_those_of_transformers_with_padding(family: str, head: str, left: bool) -> None:
    padded, unpadded = twins(model_of(family, head))
    assert_equal(unpadded.train(), padded.train(), batch_of(padded, left=left))


@pytest.mark.parametrize("family", ON)
def test_in_double_precision_nothing_but_rounding_differs(family: str) -> None:
    padded, unpadded = twins(model_of(family, "SequenceClassification").double())
    assert_equal(unpadded.train(), padded.train(), batch_of(padded), within=1e-10)


@pytest.mark.parametrize("changed", [{"share_att_key": False}, {"pos_att_type": ["c2p"]}, {"position_buckets": -1}])
def test_any_kind_of_disentangled_attention_is_computed(changed: dict[str, Any]) -> None:
    padded, unpadded = twins(model_of("DebertaV2", "SequenceClassification", **changed).double())
    assert_equal(unpadded.train(), padded.train(), batch_of(padded), within=1e-10)


@pytest.mark.parametrize("family", ON)
def test_the_layers_of_blocks_are_given_tokens_alone(family: str) -> None:
    model = model_of(family, "SequenceClassification").eval()
    assert unpad_(model)
    stack, shapes = stack_of(model), []
    assert stack is not None
    layer = [part for part in stack.blocks[-1].modules() if isinstance(part, torch.nn.Linear | Conv1D)][-1]
    layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape[:-1].numel()))
    model(**batch_of(model))
    assert set(shapes) == {sum(LENGTHS)}


ODD = {
    "a row with a gap": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]),
    "as many tokens as places in a row": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
    "a row that is alone": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
}


@pytest.mark.parametrize("family", ON)
@pytest.mark.parametrize("mask", ODD.values(), ids=ODD)
def test_batches_of_any_form_are_computed(family: str, mask: Tensor) -> None:
    padded, unpadded = twins(model_of(family, "SequenceClassification").double())
    batch = batch_of(padded, [8] * len(mask)) | {"attention_mask": mask}
    batch["input_ids"] = batch["input_ids"].where(mask.bool(), torch.tensor(padded.config.pad_token_id or 0))
    if padded.config.is_encoder_decoder:
        batch["input_ids"][torch.arange(len(mask)), (mask * torch.arange(8)).argmax(1)] = padded.config.eos_token_id
    assert_equal(unpadded, padded, batch, within=1e-10)


@pytest.mark.parametrize("family", sorted({"ModernBert", "EuroBert", "DebertaV2", "T5", "Bart", "Llama"} & {*ON}))
def test_blocks_that_are_computed_again_are_given_the_same_line(family: str) -> None:
    padded, unpadded = twins(model_of(family, "SequenceClassification").double())
    recompute_(unpadded, [])
    assert_equal(unpadded.train(), padded.train(), batch_of(padded), within=1e-10)


@pytest.mark.parametrize("family", sorted({"Bert", "ModernBert", "EuroBert", "DebertaV2", "MPNet", "Llama"} & {*ON}))
def test_a_soft_prompt_is_read_with_each_row(family: str) -> None:
    model = model_of(family, "SequenceClassification").double().eval()
    inject(model, PromptTuning(num_tokens=3), head=[])
    unpadded = copy.deepcopy(model)
    assert unpad_(unpadded)
    assert_equal(unpadded, model, batch_of(model), within=1e-10)


def test_text_is_encoded_without_padding_for_a_decoder_that_writes() -> None:
    padded, unpadded = twins(model_of("Bart", "ConditionalGeneration").double().eval())
    batch = batch_of(padded)
    wanted = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(unpadded.generate(**batch, **wanted), padded.generate(**batch, **wanted))  # type: ignore[operator]
    stack = stack_of(unpadded)
    assert stack is not None and {type(block).__name__ for block in stack.blocks} == {"BartEncoderLayer"}


@pytest.mark.parametrize("family", FIRSTS)
@pytest.mark.parametrize("left", [False, True], ids=["padding on the right", "padding on the left"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_last_block_of_first_tokens_alone_computes_the_same(family: str, left: bool, checkpointed: bool) -> None:
    padded, unpadded = twins(model_of(family, "SequenceClassification"))
    last = list(blocks(dict(unpadded.named_modules())).values())[-1]
    assert read_first_(unpadded)
    given: list[Tensor] = []
    last.register_forward_hook(lambda module, args, output: given.append(output))
    if checkpointed:
        recompute_(unpadded, [])
    batch = batch_of(padded, left=left)
    assert_equal(unpadded.train(), padded.train(), batch)
    is_narrow = not (left or checkpointed)  # a row that does not begin with a token is computed as ever
    assert all((output.shape[1] == len(LENGTHS)) is is_narrow for output in given)
    states = unpadded.base_model(**batch).last_hidden_state
    assert states[:, 0].isfinite().all() and bool(states[:, 1:].isnan().all()) is is_narrow, "no one takes them for it"
    assert ALL_TOKENS.get() is None, "nothing is left behind"


@pytest.mark.parametrize("is_narrow", [False, True], ids=["all tokens", "in the last block the first"])
def test_a_kernel_that_takes_a_line_is_told_where_rows_begin(is_narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    padded, unpadded = twins(model_of("Bert", "SequenceClassification"))
    assert not is_narrow or read_first_(unpadded)
    longest: list[int] = []

    def flash(query: Tensor, key: Tensor, value: Tensor, *of_rows: Any, **_: Any) -> tuple[Tensor]:
        """What a GPU's kernel computes."""
        counts, counts_of_keys = (offsets.diff().tolist() for offsets in of_rows[:2])
        assert {offsets.dtype for offsets in of_rows[:2]} == {torch.int32}
        assert of_rows[2:4] == (max(counts), max(counts_of_keys))
        longest.append(max(counts))
        parts = query.split(counts), key.split(counts_of_keys), value.split(counts_of_keys)
        rows = ([part.transpose(0, 1) for part in row] for row in zip(*parts, strict=True))
        return (torch.cat([F.scaled_dot_product_attention(*row).transpose(0, 1) for row in rows]),)

    monkeypatch.setattr(unpadding, "_has_flash", lambda *_: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    assert_equal(unpadded.train(), padded.train(), batch_of(padded))
    assert longest == [20, 1 if is_narrow else 20]


def test_a_head_that_reads_other_tokens_is_given_them() -> None:
    tokens = model_of("Bert", "TokenClassification")
    assert unpad_(tokens) and not read_first_(tokens)
    texts = model_of("Bert", "SequenceClassification").eval()
    batch = batch_of(texts, [3, 20, 7])
    texts.get_submodule("bert.pooler").register_forward_pre_hook(lambda module, given: (given[0][:, 1:],))
    expected = texts(**batch).logits
    assert unpad_(texts) and not read_first_(texts)
    torch.testing.assert_close(texts(**batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_only_an_unpadded_model_reads_first_tokens() -> None:
    assert not read_first_(model_of("Bert", "SequenceClassification"))


def test_a_batch_without_padding_or_without_a_mask_is_computed_too() -> None:
    padded, unpadded = twins(model_of("Bert", "SequenceClassification"))
    batch = batch_of(padded, [9, 9, 9])
    assert_equal(unpadded, padded, batch)
    without = {"input_ids": batch["input_ids"]}
    torch.testing.assert_close(unpadded(**without).logits, padded(**without).logits)


@pytest.mark.parametrize(
    ("family", "by_config"),
    [(family, False) for family in ON] + [(family, True) for family in ON if family != "T5"],  # its stacks have copies
)
def test_hidden_states_that_are_asked_for_have_the_shapes_they_always_had(family: str, by_config: bool) -> None:
    padded, unpadded = twins(model_of(family, "SequenceClassification").eval())
    asked = {} if by_config else {"output_hidden_states": True}
    for model in (padded, unpadded):
        model.config.output_hidden_states = by_config
    batch = batch_of(padded)
    name = "encoder_hidden_states" if padded.config.is_encoder_decoder else "hidden_states"
    found, expected = (model(**batch, **asked)[name] for model in (unpadded, padded))
    assert len(found) == len(expected) > 1
    is_token = batch["attention_mask"].bool()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[is_token], other[is_token], rtol=1e-4, atol=1e-5)


def test_checkpointed_blocks_compute_the_same() -> None:
    padded, unpadded = twins(model_of("Bert", "SequenceClassification"))
    for block in unpadded.get_submodule("bert.encoder.layer").children():
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    assert_equal(unpadded.train(), padded.train(), batch_of(padded))


ATTENTION_DROPS = {
    "Bert": {"attention_probs_dropout_prob": 0.5},
    "DebertaV2": {"attention_probs_dropout_prob": 0.5},
    "MPNet": {"attention_probs_dropout_prob": 0.5},
    "EuroBert": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("family", ATTENTION_DROPS)
def test_dropout_is_on_in_training_and_the_same_for_the_same_seed(family: str) -> None:
    model = model_of(family, "SequenceClassification", **ATTENTION_DROPS[family])
    assert unpad_(model)
    batch = batch_of(model)
    model.train()
    logits = [torch.manual_seed(seed) and model(**batch).logits for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])


def test_under_autocast_it_is_as_near_to_float32_as_the_padded_one() -> None:
    padded, unpadded = twins(model_of("Bert", "SequenceClassification"))
    batch = batch_of(padded)
    exact = padded(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        far = (padded(**batch).logits - exact).norm()
        assert (unpadded(**batch).logits - exact).norm() <= 2 * far


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("family", ["Bert", "DebertaV2"])
def test_a_copy_is_unpadded_too(copied: Any, family: str) -> None:
    model = model_of(family, "SequenceClassification").eval()
    assert unpad_(model)
    twin, batch = copied(model), batch_of(model)
    assert is_unpadded(twin)
    assert torch.equal(twin(**batch).logits, model(**batch).logits)


def test_nothing_of_it_is_saved(tmp_path: Path) -> None:
    model = model_of("Bert", "SequenceClassification").eval()
    model.save_pretrained(tmp_path / "before")
    inject(model, Lora(targets="all-linear", rank=4), head=[])
    assert unpad_(model)
    merge(model)
    model.save_pretrained(tmp_path / "after")
    texts = [(tmp_path / name / "config.json").read_text() for name in ("before", "after")]
    assert texts[0] == texts[1]
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "after").eval()
    assert loaded.config._attn_implementation == "sdpa"
    batch = batch_of(model)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


IN_LINE = "its code takes no tokens in a line"
UNFIT: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "attention of its own": ("Deberta", HEADS[0], SIZES, "its attention is 'eager', not 'sdpa'"),
    "a convolution between blocks": ("DebertaV2", HEADS[0], DISENTANGLED | {"conv_kernel_size": 3}, IN_LINE),
    "a mask of its own": ("Gemma3Text", HEADS[0], DECODER | {"use_bidirectional_attention": True}, "its mask is made"),
    "no function is asked for": ("Falcon", HEADS[0], {**SIZES, "pad_token_id": 0}, "transformers lets no function"),
    "a bias of pairs": ("UMT5", HEADS[1], T5 | BUCKETS, f"{IN_LINE}: its bias by distance|its attention is 'eager'"),
    "a writer": ("Llama", "CausalLM", DECODER, "it writes text token by token"),
    "no blocks": ("FNet", HEADS[0], {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64}, "its attention"),
}


@pytest.mark.filterwarnings("ignore:.*Model config")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # transformers 5.3: DeBERTa
@pytest.mark.parametrize(("family", "head", "sizes", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_model_of_another_form_is_left_as_it_is_and_that_is_told(
    family: str, head: str, sizes: dict[str, Any], reason: str
) -> None:
    kind = getattr(transformers, f"{family}For{head}")
    torch.manual_seed(0)
    model = kind(kind.config_class(**sizes)).eval()
    batch = batch_of(model)
    expected, attention = model(**batch).logits, model.config._attn_implementation
    told = why_not_unpadded(model)
    assert told is not None and re.match(reason, told)
    assert model.config._attn_implementation == attention and not is_unpadded(model)
    assert not any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in model.modules()
    )
    assert torch.equal(model(**batch).logits, expected)


def test_a_model_that_attends_in_a_way_asked_for_is_left_as_it_is() -> None:
    assert not unpad_(model_of("Bert", "SequenceClassification", attn_implementation="eager"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_computes_the_same_without_padding(method: str) -> None:
    adapter: Adapter = make(plain(compose("train", [f"adapter={method}"]).adapter))
    logits = []
    for accelerations in ({}, {"unpadding": Unpadding(), "first_tokens": FirstTokens()}):
        torch.manual_seed(0)
        task = TinyBert(adapter=adapter, accelerations=accelerations)
        torch.manual_seed(1)
        task.configure_model()
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in trainable(task.model).values():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        assert isinstance(task.model, PreTrainedModel)
        logits.append(task.eval().model(**batch_of(task.model)).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)


def test_a_task_drops_cheaply_in_training_and_is_plain_in_evaluation() -> None:
    task = TinyBert(adapter=Lora(targets="all-linear", rank=2), accelerations={"dropout": DropoutMasks()})
    task.configure_model()
    kinds = [type(module) for module in task.model.modules()]
    assert CheapDropout in kinds
    assert task.train(False).training is False
    plain_kinds = [type(module) for module in task.model.modules()]
    assert CheapDropout not in plain_kinds and len(plain_kinds) == len(kinds)
