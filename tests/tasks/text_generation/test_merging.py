"""A merged language model is one of transformers' own: the same text, the same end, weights as tied as before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

import loralight
from loralight.adapters import Lora, merge
from loralight.adapters.base import trainable
from loralight.tasks.text_generation import TextGeneration

from .conftest import FAMILIES, MARKED, WORDS

PROMPTS = ["the quick brown fox", "what is it? it is", "a lazy"]


@pytest.mark.filterwarnings("ignore:You have modified the pretrained model configuration")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_writes_greedily_what_the_adapted_model_does(
    family: str, language_model: Callable[..., str], tmp_path: Path
) -> None:
    task = TextGeneration(
        checkpoint=language_model(family), adapter=Lora(targets="all-linear", rank=4), columns={"text": "text"}
    )
    task.configure_model()
    torch.manual_seed(0)
    for name, parameter in trainable(task.model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    task.eval()
    wanted = [answer["completion"] for answer in task.predict(PROMPTS, max_new_tokens=16)]
    merge(task.model)
    task.save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    for prompt, completion in zip(PROMPTS, wanted, strict=True):
        (found,) = write(prompt, return_full_text=False, do_sample=False, max_new_tokens=16)
        assert found["generated_text"] == completion
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == FAMILIES[family]["tie_word_embeddings"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        shapes = [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118  # no mapping
    assert shapes.count((len(task.tokenizer), 32)) == (1 if tied else 2)  # a tied one is there once


def test_a_merged_chat_model_has_the_template_it_was_trained_with_and_ends_its_turns(
    tiny_llama: str, tmp_path: Path
) -> None:
    task = TextGeneration(
        checkpoint=tiny_llama,
        adapter=Lora(targets="all-linear", rank=4),
        columns={"messages": "messages"},
        chat_template=MARKED,
    )
    task.configure_model()
    merge(task.model)
    before = task.model.generation_config.eos_token_id
    task.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == MARKED
    ends = GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert task.model.generation_config.eos_token_id == before


def test_a_run_on_packed_texts_is_merged_from_the_command_line(
    in_process: Callable[..., int], tiny_llama: str, tmp_path: Path
) -> None:
    for split, count in {"train": 40, "validation": 12}.items():
        lines = [json.dumps({"text": " ".join((WORDS * 2)[n % 15 : n % 15 + 4 + n % 7])}) for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    line = ["task=text_generation", "data=text_generation", "data.path=.", f"model.checkpoint='{tiny_llama}'"]
    line += ["model.max_length=48", "task.samples=0", "trainer=cpu", "trainer.max_epochs=1", "optimizer.lr=0.01"]
    assert in_process("train", *line, "hydra.run.dir=run") == 0
    assert in_process("merge", "run=run", "output=merged", "device=cpu") == 0
    found = json.loads((tmp_path / "merged" / "merge_certificate.json").read_text())
    assert found["within_tolerance"] and found["outputs"]["values"] % 300 == 0  # logits of learnt tokens
    assert found["metrics"]["merged"] == pytest.approx(found["metrics"]["adapted"], rel=1e-4)
    (answer,) = loralight.load("run", device="cpu").predict(["the quick"], max_new_tokens=12)
    write = pipeline("text-generation", model="merged", device="cpu")
    (said,) = write("the quick", return_full_text=False, do_sample=False, max_new_tokens=12)
    assert said["generated_text"] == answer["completion"]
