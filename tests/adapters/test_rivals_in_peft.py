"""Folders of adapters other than LoRA are PEFT's too, where PEFT computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import loralight
from loralight.adapters.base import Adapter, trainable
from loralight.adapters.methods.bitfit import BitFit
from loralight.adapters.methods.bottleneck import Houlsby
from loralight.adapters.methods.ia3 import IA3
from loralight.adapters.methods.norm_tuning import NormTuning
from loralight.adapters.methods.prefix_tuning import PrefixTuning
from loralight.adapters.methods.prompt_tuning import PromptTuning
from loralight.artifacts.export import CONFIG, save_adapter
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration
from loralight.training.task import AdapterTask

LABELS = ["bad", "so so", "good"]
TOKENS = torch.arange(1000, 1024).view(3, 8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm:UserWarning"),  # PEFT of what it tunes
]


def trained(task: AdapterTask) -> AdapterTask:
    """A task as after training: nothing that learns is as it was made."""
    task.configure_model()
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return task.eval()


def classifier(checkpoint: str, adapter: Adapter) -> AdapterTask:
    return trained(TextClassification(checkpoint=checkpoint, labels=LABELS, adapter=adapter, max_length=16))


def export(task: AdapterTask, folder: Path, *, task_name: str, adapter_name: str, **arguments: Any) -> Path:
    parts = {"task": {"name": task_name, "arguments": arguments}, "adapter": {"name": adapter_name, "arguments": {}}}
    save_adapter(task, folder, recipe=parts, metrics={})
    return folder


@pytest.mark.parametrize(("name", "adapter"), [("ia3", IA3()), ("norm_tuning", NormTuning())])
def test_peft_loads_a_classifier_and_computes_the_same(
    tiny_bert: str, tmp_path: Path, name: str, adapter: Adapter
) -> None:
    task = classifier(tiny_bert, adapter)
    folder = export(
        task, tmp_path / "adapter", task_name="text_classification", adapter_name=name, checkpoint=tiny_bert
    )
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=len(LABELS)).eval()
    loaded = PeftModel.from_pretrained(base, folder).eval()
    expected = task.model(input_ids=TOKENS).logits
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


def test_peft_loads_a_language_model_s_prompt_and_computes_the_same(tiny_bert: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    checkpoint = tmp_path / "llama"
    config = LlamaConfig(vocab_size=40000, **sizes, bos_token_id=None, eos_token_id=1, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(tiny_bert, eos_token="[SEP]").save_pretrained(checkpoint)
    adapter = PromptTuning(num_tokens=4)
    task = trained(TextGeneration(checkpoint=str(checkpoint), columns={"text": "text"}, adapter=adapter))
    folder = export(task, tmp_path / "adapter", task_name="text_generation", adapter_name="prompt_tuning")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), folder).eval()
    expected = task.model(input_ids=TOKENS, use_cache=False).logits
    found = loaded(input_ids=TOKENS, use_cache=False).logits[:, 4:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("bitfit", BitFit()),
        ("houlsby", Houlsby()),
        ("prefix_tuning", PrefixTuning()),
        ("prompt_tuning", PromptTuning()),
        ("ia3", IA3()),
    ],
)
def test_a_saved_adapter_is_loaded_bit_for_bit_whether_peft_knows_it_or_not(
    tiny_bert: str, tmp_path: Path, name: str, adapter: Adapter
) -> None:
    task = classifier(tiny_bert, adapter)
    arguments = {"checkpoint": tiny_bert, "labels": LABELS, "max_length": 16}
    folder = export(task, tmp_path / "adapter", task_name="text_classification", adapter_name=name, **arguments)
    assert (folder / CONFIG).exists() is (name == "ia3")
    loaded = loralight.load(folder, device="cpu")
    assert torch.equal(loaded.model(input_ids=TOKENS).logits, task.model(input_ids=TOKENS).logits)
