"""Models in another dtype: what is cast, and what a task sees of it."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from loralight.models.dtypes import TOLERANCES, cast_, computing_in


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cast_model_is_the_one_that_loading_in_that_dtype_gives(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.3, **sizes)).eval()
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    cast_(model, dtype)
    ours, theirs = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (model, loaded))
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.float32 in {buffer.dtype for buffer in model.buffers()}  # the rotary frequencies
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)


class _Model(nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> BaseModelOutput:
        assert (x.dtype, mask.dtype) == (torch.bfloat16, torch.long)
        return BaseModelOutput(last_hidden_state=x * mask, attentions=(x,))


def test_a_task_hands_over_and_gets_float32_while_the_model_computes_in_its_dtype() -> None:
    model, x = _Model(), torch.rand(3)
    with computing_in(model, torch.bfloat16):
        found = model(x, mask=torch.ones(3, dtype=torch.long))
    assert isinstance(found, BaseModelOutput)
    assert found.last_hidden_state.dtype == found.attentions[0].dtype == torch.float32
    assert torch.equal(found.last_hidden_state, x.bfloat16().float())
    with pytest.raises(AssertionError):
        model(x, mask=torch.ones(3, dtype=torch.long))


def test_the_tolerances_are_ordered_as_the_precision_is() -> None:
    by_precision = sorted(TOLERANCES, key=lambda dtype: torch.finfo(dtype).eps)
    assert sorted(TOLERANCES, key=TOLERANCES.__getitem__) == by_precision
    assert all(torch.finfo(dtype).eps < tolerance for dtype, tolerance in TOLERANCES.items())
