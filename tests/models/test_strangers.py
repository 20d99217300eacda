"""What a model brings beside data is for the user to allow, in the command or as an argument, and for nobody else."""

import inspect
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.quantizers.auto import get_hf_quantizer

import loralight
from loralight.errors import InputError
from loralight.models.budget import Size, at_most
from loralight.models.pretrained import load_model, load_tokenizer
from loralight.models.strangers import size_of_weights
from loralight.models.trust import trusting

OWN = """
from pathlib import Path
from transformers import BertForSequenceClassification

Path(r"{mark}").touch()


class Own(BertForSequenceClassification):
    pass
"""


@pytest.fixture
def base(tiny_bert: str, tmp_path: Path) -> Path:
    """A copy of a model, to be changed."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


def bring_code(base: Path) -> Path:
    """Have a model name a class of its own; returns the file that its module makes when it is run."""
    mark = base.parent / "ran"
    (base / "own.py").write_text(OWN.format(mark=mark))
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "own.Own"}
    (base / "config.json").write_text(json.dumps(config))
    return mark


def load(base: Path) -> Any:
    return load_model(AutoModelForSequenceClassification, str(base), num_labels=2)


@pytest.fixture
def no_modules_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache into which transformers copies a model's code: an empty one."""
    for module in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)


@pytest.mark.usefixtures("no_modules_kept")
def test_code_that_a_model_brings_runs_only_if_the_user_says_so(base: Path) -> None:
    mark = bring_code(base)
    with pytest.raises(InputError, match=r"^E-REMOTE-CODE: .*own\.Own.*model\.trust_remote_code=true.*=false takes"):
        load(base)
    with trusting(trust_remote_code=False):
        assert type(load(base)) is BertForSequenceClassification
    assert not mark.exists()
    with trusting(trust_remote_code=True):
        assert type(load(base)).__name__ == "Own"
    assert mark.exists()


def test_the_word_holds_in_the_thread_that_gave_it(base: Path) -> None:
    bring_code(base)
    found: list[str] = []

    def work() -> None:
        with pytest.raises(InputError) as error:
            load(base)
        found.append(str(error.value))

    with trusting(trust_remote_code=False):
        other = threading.Thread(target=work)
        other.start()
        other.join()
    assert found[0].startswith("E-REMOTE-CODE")


@pytest.mark.parametrize("setting", ["trust_remote_code", "allow_pickle"])
def test_a_word_that_is_neither_true_nor_false_is_an_error(setting: str) -> None:
    with pytest.raises(InputError, match=rf"^E-CONFIG: model\.{setting}=yes: give true"), trusting(**{setting: "yes"}):
        pass


def test_of_a_pickle_that_the_user_allows_tensors_alone_are_read(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(tensors, base / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"^E-PICKLE: .*pytorch_model\.bin.*model\.allow_pickle=true"):
        load(base)
    name = "bert.embeddings.word_embeddings.weight"
    with trusting(allow_pickle=True):
        assert torch.equal(load(base).state_dict()[name], tensors[name])
        torch.save({"a": Path("a")}, base / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"^E-MODEL: "):
            load(base)


def test_safetensors_are_taken_though_a_pickle_is_beside_them(base: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"never read")
    assert load(base)


@pytest.mark.parametrize(
    "honest",
    [
        {"attn_implementation": "eager"},
        {"_attn_implementation_autoset": True},
        {"auto_map": {}},
        pytest.param(
            {"quantization_config": None},
            marks=pytest.mark.skipif(
                "pre_quantized = hasattr" in inspect.getsource(get_hf_quantizer),
                reason="this version of transformers takes a null there for a quantised base, and fails",
            ),
        ),
        {"num_labels": 21_843},
        {"rope_theta": 5_000_000_000, "max_length": 10**12},
        {"time_step_limit": [0.0, float("inf")]},
    ],
)
def test_what_honest_configs_say_is_taken(base: Path, honest: dict[str, Any]) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **honest}))
    assert load(base)


def test_a_tokenizer_of_a_class_that_transformers_lacks_is_read_by_its_general_one(base: Path) -> None:
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "MineFast"}))
    assert len(load_tokenizer(str(base))) > 30_000


def test_the_size_of_weights_is_that_of_all_parts(base: Path) -> None:
    def counted(tensors: list[torch.Tensor]) -> Size:
        return Size(len(tensors), sum(tensor.numel() for tensor in tensors))

    assert size_of_weights(str(base), {}) == counted(list(load_file(base / "model.safetensors").values()))
    model, parts = load(base), base.parent / "parts"
    model.save_pretrained(parts, max_shard_size="1MB")
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    assert size_of_weights(str(parts), {}) == counted(list(model.state_dict().values()))
    assert load(parts)


def test_memory_is_refused_before_it_is_asked_for() -> None:
    error = InputError("E-TEST", "more")
    with at_most(Size(tensors=2, values=100), error):
        torch.zeros(10, 5)
        with pytest.raises(InputError, match="E-TEST"):
            torch.empty(2**40)  # more than any machine has
    with at_most(Size(tensors=2, values=100), error), pytest.raises(InputError, match="E-TEST"):
        for _ in range(3):
            torch.arange(5)


def test_no_run_s_folder_allows_code_to_any_command(
    tiny_run: list[str], base: Path, in_process: Callable[..., int], refused: Callable[..., str], tmp_path: Path
) -> None:
    given = [o for o in tiny_run if not o.startswith("model.checkpoint=")] + [f"model.checkpoint='{base}'"]
    assert in_process("train", *given, "hydra.run.dir=run", "model.trust_remote_code=false") == 0
    mark = bring_code(base)
    overrides = tmp_path / "run" / ".hydra" / "overrides.yaml"
    overrides.write_text(overrides.read_text() + "- model.trust_remote_code=true\n- ++model.trust_remote_code=true\n")
    for command in (
        ["evaluate", "run=run"],
        ["merge", "run=run", "output=merged"],
        ["train", "resume=run", "trainer.max_epochs=2"],
        ["train", *given],
        ["predict", "run=run", "input=texts.txt"],
    ):
        (tmp_path / "texts.txt").write_text("a fine film")
        assert "loralight: E-REMOTE-CODE: " in refused(*command), command
    assert in_process("evaluate", "run=run", "model.trust_remote_code=false") == 0
    assert in_process("predict", "run=run", "input=texts.txt", "model.trust_remote_code=false") == 0
    assert not mark.exists()
    assert loralight.load("run", trust_remote_code=False).predict(["a fine film"])
