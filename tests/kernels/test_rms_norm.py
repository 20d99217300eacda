"""RMS norms by PyTorch's kernel compute what transformers' own do, in training alone, or are left as they are."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from loralight.kernels import linear as kernels
from loralight.kernels import rms_norm
from loralight.kernels.rms_norm import FusedRMSNorm, fusible, set_fused_

KINDS = [LlamaRMSNorm, MistralRMSNorm, Qwen3RMSNorm]


@pytest.fixture(autouse=True)
def on_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PROCESSORS", ())


def norm_of(kind: type[nn.Module]) -> nn.Module:
    norm = kind(32, 1e-5)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    return norm


def output_and_gradients(norm: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad(y, [x, norm.weight], upstream)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_transformers(
    kind: type[nn.Module], dtype: torch.dtype, tolerance: float
) -> None:
    plain = norm_of(kind).to(dtype)
    fused = copy.deepcopy(plain)
    assert fusible(fused) == [fused]
    set_fused_([fused], True)
    assert isinstance(fused, FusedRMSNorm)
    x = torch.randn(2, 7, 32).to(dtype)
    for found, expected in zip(output_and_gradients(fused, x), output_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_one_that_computes_something_else_is_left_alone() -> None:
    class CappedRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            capped: Tensor = super().forward(x).clamp(max=1)
            return capped

    class NeedyRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            gated: Tensor = super().forward(x) * gate
            return gated

    norms = [norm_of(GemmaRMSNorm), norm_of(CappedRMSNorm), norm_of(NeedyRMSNorm), nn.LayerNorm(32)]
    assert fusible(nn.ModuleList(norms)) == []


def test_it_is_turned_back_as_it_was() -> None:
    norm = norm_of(LlamaRMSNorm)
    state, words = dict(vars(norm)), repr(norm)
    for _ in range(2):
        set_fused_([norm], True)
    assert repr(norm) == words.replace("Llama", "FusedLlama")
    again = pickle.loads(pickle.dumps(norm))
    for one in (norm, again):
        set_fused_([one], False)
        set_fused_([one], False)
        assert type(one) is LlamaRMSNorm
    assert vars(norm) == state


def test_a_processor_and_other_precision_take_the_models_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = norm_of(LlamaRMSNorm)
    x = torch.randn(3, 32)
    expected, expected_of_half = norm(x), norm(x.bfloat16())
    set_fused_([norm], True)
    assert torch.equal(norm(x.bfloat16()), expected_of_half)
    monkeypatch.setattr(kernels, "_PROCESSORS", ("cpu",))
    monkeypatch.setattr(rms_norm, "F", None)  # the kernel is not called
    with torch.no_grad():
        assert torch.equal(norm(x), expected)


def test_a_compiled_model_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.LlamaModel(config)
    ids = torch.arange(6).view(2, 3)
    expected = model(ids).last_hidden_state
    norms = fusible(model)
    assert len(norms) == 3
    set_fused_(norms, True)
    monkeypatch.setattr(rms_norm, "F", None)  # the kernel is not called
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(ids).last_hidden_state, expected)
