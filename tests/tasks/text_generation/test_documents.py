"""A model attends within the documents of a packed row, and computes what it does with a mask, or is left as it is."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from loralight.acceleration import packed_documents as documents
from loralight.acceleration import unpadding
from loralight.acceleration.gradient_checkpointing import recompute_
from loralight.acceleration.packed_documents import Line, attends_within_, line_of
from loralight.acceleration.prefix_cache import Prefix
from loralight.acceleration.ragged import Ragged
from loralight.adapters import Lora
from loralight.adapters.methods.prefix_tuning import PrefixTuning
from loralight.models.blocks import blocks

from .test_module import ROWS, batch_of, gradients, make

POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]])


def test_a_line_has_documents_from_long_to_short() -> None:
    line = Line(POSITIONS)
    numbers = torch.arange(10).view(2, 5)
    assert line.line_up(numbers).tolist() == [[0, 1, 2, 3, 4, 5, 6, 8, 9, 7]]
    assert line.line_up(POSITIONS).tolist() == [[0, 1, 2, 0, 1, 0, 1, 0, 1, 0]]
    assert line.places.tolist() == line.line_up(numbers)[0].tolist()


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Llama", {}, None),
        ("GPT2", {}, None),
        ("Granite", {}, None),
        ("GPTNeoX", {}, None),
        ("Mistral", {"sliding_window": 2}, None),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}, None),
        ("Gemma3Text", {"sliding_window": 2, "head_dim": 16}, None),
        ("Bloom", {"n_layer": 2, "n_head": 2, "hidden_size": 32}, "its attention is 'eager', not 'sdpa'"),
    ],
)
def test_who_attends_within_documents(
    family: str,
    changes: dict[str, Any],
    reason: str | None,
    language_model: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = sizes | {"intermediate_size": 64} if "sliding_window" in changes else {}
    model = AutoModelForCausalLM.from_pretrained(language_model(family, **sizes, **changes))
    before = model.config._attn_implementation
    with caplog.at_level("INFO"):
        assert attends_within_(model) is (reason is None)
    assert (model.config._attn_implementation == before) is (reason is not None)
    assert reason is None or re.search(reason, caplog.text)


def test_a_model_that_looks_at_its_mask_keeps_it(tiny_llama: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    block = next(iter(blocks(dict(model.named_modules())).values()))
    block.register_forward_pre_hook(lambda _, args, kwargs: kwargs["attention_mask"].dtype and None, with_kwargs=True)
    assert not attends_within_(model)
    assert model.config._attn_implementation == "sdpa"


def test_an_adapter_with_an_attention_of_its_own_is_left_its_rows(tiny_llama: str) -> None:
    task = make(tiny_llama, adapter=PrefixTuning(num_tokens=2))
    step = task.step(batch_of([[0, 1], [2]]))
    assert not attends_within_(task.model) and step.loss.isfinite()


def steps(task: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    task.zero_grad()
    step = task.step(batch)
    step.loss.backward()
    return step.predictions, gradients(task)


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def in_rows(task: Any) -> Any:
    """A task's like that masks."""
    task = copy.deepcopy(task)
    documents._attends[task.model] = False
    return task


@pytest.mark.parametrize("checkpointed", [False, True])
def test_scores_and_gradients_are_those_with_a_mask(tiny_llama: str, checkpointed: bool) -> None:
    task, batch = make(tiny_llama).train(), batch_of(ROWS)
    expected = steps(in_rows(task), batch)
    given: list[Any] = []
    block = next(iter(blocks(dict(task.model.named_modules())).values()))
    attention = block.get_submodule("self_attn")
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
    )
    if checkpointed:
        recompute_(task.model, [])
    found = steps(task, batch)
    assert attends_within_(task.model)
    assert_same(found, expected)
    lines = [one for one in given if isinstance(one, Ragged) and len(one.lengths) > 2]
    assert len(lines) == 1 + checkpointed, "computed again in the backward pass, within documents too"


@pytest.mark.parametrize("window", [2, 4, 100])
@pytest.mark.parametrize("family", ["Mistral", "Gemma3Text"])
def test_a_window_shorter_than_a_document_is_kept(
    family: str, window: int, language_model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    kinds = {"sliding_window_pattern": 2} if family == "Gemma3Text" else {}  # a full layer after each with a window
    sizes |= {"intermediate_size": 64, "head_dim": 16, "sliding_window": window}
    task, batch = make(language_model(family, **sizes, **kinds)).train(), batch_of(ROWS)
    expected = steps(in_rows(task), batch)
    looks: set[tuple[bool, bool]] = set()

    def look(module: Any, query: Tensor, key: Tensor, value: Tensor, rows: Any, **settings: Any) -> Any:
        if isinstance(rows, Ragged):
            looks.add((rows.is_plain, rows.is_causal))
        return unpadding.attend_by_row(module, query, key, value, rows, **settings)

    assert attends_within_(task.model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "loralight_documents", look)
    assert_same(steps(task, batch), expected)
    of_all, of_window = (True, True), (window == 100, window == 100)
    assert looks == ({of_all, of_window} if kinds else {of_window}), "no mask is made that no token needs"


def test_a_kernel_that_takes_a_line_is_told_that_it_is_causal(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = make(tiny_llama).train(), batch_of(ROWS)
    expected = steps(in_rows(task), batch)
    calls: list[tuple[Any, ...]] = []

    def flash(query: Tensor, key: Tensor, value: Tensor, *of_rows: Any, **_: Any) -> tuple[Tensor]:
        """What a GPU's kernel computes, of heads that share keys too."""
        calls.append(of_rows[2:])
        rows = zip(*(part.split(of_rows[0].diff().tolist()) for part in (query, key, value)), strict=True)
        attended = [
            F.scaled_dot_product_attention(*(one.transpose(0, 1) for one in row), is_causal=of_rows[5], enable_gqa=True)
            for row in rows
        ]
        return (torch.cat([one.transpose(0, 1) for one in attended]),)

    monkeypatch.setattr(unpadding, "_has_flash", lambda *_: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    assert_same(steps(task, batch), expected)
    assert calls[-1] == (9, 9, 0.0, True, False)  # the last document has its row's padding


def test_what_is_written_and_saved_is_what_it_was(tiny_llama: str, tmp_path: Path) -> None:
    task = make(tiny_llama)
    expected = task.predict(["a b", "c"], max_new_tokens=8)
    task.step(batch_of(ROWS))
    assert attends_within_(task.model)
    assert task.predict(["a b", "c"], max_new_tokens=8) == expected
    task.model.save_pretrained(tmp_path)
    assert "loralight" not in (tmp_path / "config.json").read_text()


def test_frozen_blocks_know_a_document_wherever_it_lies(tiny_llama: str, tmp_path: Path) -> None:
    task = make(tiny_llama, adapter=Lora(targets=["*.layers.1.*"], rank=2)).train()
    expected = steps(in_rows(task), batch_of([[1, 0], [3, 2]]))[0]  # rows without padding
    line_of(task.model, batch_of(ROWS)["position_ids"])  # which tries what the model does
    prefix = Prefix([next(iter(blocks(dict(task.model.named_modules())).values()))], tmp_path / "rows.sqlite")
    try:
        found = [steps(task, batch_of(rows))[0] for rows in ([[0, 1]], [[2, 3]], [[1, 0], [3, 2]])]
    finally:
        prefix.remove_()
    assert prefix.num_skipped == 1
    torch.testing.assert_close(found[2], expected, rtol=1e-5, atol=1e-5)
