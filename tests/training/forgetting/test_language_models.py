"""What is measured of language models is what transformers finds, with and without a head of the task's own."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from loralight.adapters import Lora
from loralight.errors import InputError
from loralight.tasks.ner import Ner
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration
from loralight.training import AdapterTask
from loralight.training.forgetting.language_models import LanguageModelLoss, MaskedLanguageModelLoss

from ...conftest import MINILM

TEXTS = ["the quick brown fox", "it is a fine day", "what a lazy dog it is"]


@pytest.fixture
def tiny_gpt(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal language model with random weights and MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_gpt")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.eos_token = tokenizer.sep_token
    tokens = {f"{kind}_token_id": tokenizer.sep_token_id for kind in ("bos", "eos", "pad")}
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **size, **tokens)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("general") / "general.txt"
    file.write_text("".join(f"{text}\n" for text in TEXTS))
    return str(file)


def classify(checkpoint: str) -> AdapterTask:
    return TextClassification(checkpoint=checkpoint, labels=["a", "b"], adapter=Lora(targets="all-linear"))


def tag(checkpoint: str) -> AdapterTask:
    return Ner(checkpoint=checkpoint, labels=["A"], max_length=32, stride=8, adapter=Lora(targets="all-linear"))


def generate(checkpoint: str) -> AdapterTask:
    return TextGeneration(checkpoint=checkpoint, adapter=Lora(targets="all-linear"))


def by_transformers(checkpoint: str) -> float:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    losses, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            losses += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return losses / tokens


def measured(probe: LanguageModelLoss | MaskedLanguageModelLoss, task: AdapterTask) -> float:
    with torch.no_grad(), task.unaccelerated():
        return probe.measure(task, None).scores["loss"]


@pytest.mark.parametrize("make", [generate, classify])
def test_a_decoder_s_loss_is_its_own_whatever_its_task(
    make: Callable[[str], AdapterTask], tiny_gpt: str, texts_file: str
) -> None:
    task, probe = make(tiny_gpt), LanguageModelLoss(texts=texts_file)
    task.configure_model()
    probe.prepare(task)
    before = measured(probe, task)
    assert before == pytest.approx(by_transformers(tiny_gpt), rel=1e-5)
    with torch.no_grad():
        for name, tensor in task.trainable_tensors().items():
            tensor.add_(0.3 if "lora_B" in name else 0.0)
    assert abs(measured(probe, task) - before) > 1e-3, "it is the task's layers that are measured"


@pytest.mark.parametrize("make", [classify, tag])
def test_an_encoder_s_loss_follows_the_task_s_layers_and_not_its_head(
    make: Callable[[str], AdapterTask], tiny_bert: str, texts_file: str
) -> None:
    task, probe = make(tiny_bert), MaskedLanguageModelLoss(texts=texts_file)
    task.configure_model()
    probe.prepare(task)
    before = measured(probe, task)
    with torch.no_grad():
        for head in task.head(task.model):
            for parameter in head.parameters():
                parameter.add_(1.0)
    assert measured(probe, task) == before
    with torch.no_grad():
        for name, tensor in task.trainable_tensors().items():
            tensor.add_(0.3 if "lora_B" in name else 0.0)
    assert abs(measured(probe, task) - before) > 1e-3


def test_an_encoder_without_such_a_head_is_refused_with_what_can_be_measured(texts_file: str) -> None:
    task = classify(MINILM)
    task.configure_model()
    with pytest.raises(InputError, match=r"E-FORGETTING: .*has no weights for the head.*forgetting=features"):
        MaskedLanguageModelLoss(texts=texts_file).prepare(task)
    with pytest.raises(InputError, match=r"E-MODEL: .* is an encoder"):
        LanguageModelLoss(texts=texts_file).prepare(task)
