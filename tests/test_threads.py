"""Eight threads that ask one model at once get what each would get alone, and leave the model as it was."""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import loralight
from loralight.adapters import IA3, Adapter, Houlsby, Lora, Parallel, PrefixTuning, inject
from loralight.adapters.base import trainable
from loralight.adapters.layers.attention import show_weights_
from loralight.adapters.multi.parts import parts_of
from loralight.adapters.multi.rows import by_rows
from loralight.artifacts.bank import AdapterBank
from loralight.errors import InputError
from loralight.kernels import linear as kernels
from loralight.models import tokenise
from loralight.tasks.image_classification import ImageClassification
from loralight.tasks.ner import Ner
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration
from loralight.training.task import AdapterTask

from .tasks.image_classification.conftest import random_model
from .tasks.text_generation.conftest import FAMILIES, make_tokenizer

Asked = TypeVar("Asked")
Said = TypeVar("Said")
NUM_THREADS = 8
WORDS = ["a", "fine", "film", "we", "hated", "every", "minute", "of", "it", "joy", "dull", "Berlin", "Smith"]


@pytest.fixture(autouse=True)
def short_turns() -> Iterator[None]:
    """Threads take turns often, on one core too."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(ask: Callable[[Asked], Said], questions: Sequence[Asked]) -> list[Said]:
    """What ``ask`` says of each question, asked by threads that all begin together."""
    begin = Barrier(NUM_THREADS)

    def work(number: int) -> list[Said]:
        begin.wait()
        return [ask(question) for question in questions[number::NUM_THREADS]]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        said = list(pool.map(work, range(NUM_THREADS)))
    return [said[number % NUM_THREADS][number // NUM_THREADS] for number in range(len(questions))]


def texts(number: int) -> list[str]:
    """A request of its own size, whose texts have lengths of their own."""
    draw = torch.Generator().manual_seed(number)
    lengths = torch.randint(1, 30, (1 + number % 5,), generator=draw).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=draw).tolist()) for length in lengths
    ]


def images(number: int) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(number)
    sizes = torch.randint(20, 60, (1 + number % 3, 2), generator=draw).tolist()
    return [
        Image.frombytes("RGB", (wide, high), bytes(torch.randint(256, (wide * high * 3,), generator=draw).tolist()))
        for wide, high in sizes
    ]


def assert_equal(found: Any, wanted: Any) -> None:
    """Equal but for the last digit of a number that is rounded to six."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_equal(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=2e-6) if isinstance(wanted, float) else wanted)


@pytest.fixture(scope="module")
def checkpoints(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders of small models, by task."""
    llama, resnet = (tmp_path_factory.mktemp(name) for name in ("llama", "resnet"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=300, **FAMILIES["Llama"])
    transformers.LlamaForCausalLM(config).save_pretrained(llama)
    make_tokenizer().save_pretrained(llama)
    save_file(random_model("test_resnet").state_dict(), resnet / "model.safetensors")
    settings = {"architecture": "test_resnet", "num_classes": 7, "input_size": [3, 32, 32]}
    (resnet / "config.json").write_text(json.dumps(settings))
    texts = dict.fromkeys(("text_classification", "ner"), tiny_bert)
    return {**texts, "text_generation": str(llama), "image_classification": str(resnet)}


KINDS: dict[str, tuple[type[AdapterTask], dict[str, Any], dict[str, Any]]] = {
    "text_classification": (TextClassification, {"labels": ["bad", "good"], "max_length": 24}, {}),
    "ner": (Ner, {"labels": ["PER", "LOC"], "max_length": 16, "stride": 4}, {}),
    "text_generation": (TextGeneration, {}, {"max_new_tokens": 4}),
    "image_classification": (ImageClassification, {"labels": ["a", "b", "c"]}, {}),
}
"""Each task's class and arguments, and options of its `predict`."""


def task_of(kind: str, checkpoint: str, **adapter: Any) -> AdapterTask:
    """A task as training leaves it: in training mode, in which dropout is on."""
    made, arguments, _ = KINDS[kind]
    targets = "all-conv" if kind == "image_classification" else "all-linear"
    task = made(checkpoint=checkpoint, **arguments, adapter=Lora(**{"targets": targets, "rank": 2, **adapter}))
    task.configure_model()
    disturb_(task.model)
    return task


def disturb_(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_at_once_are_answered_as_one_after_the_other(kind: str, checkpoints: dict[str, str]) -> None:
    task, options = task_of(kind, checkpoints[kind]), KINDS[kind][2]
    requests: list[list[Any]] = [images(n) if kind == "image_classification" else texts(n) for n in range(48)]
    twin = copy.deepcopy(task)
    expected = [twin.predict(request, batch_size=2 + len(request) % 2, **options) for request in requests]

    def ask(request: list[Any]) -> list[dict[str, Any]]:
        return task.predict(request, batch_size=2 + len(request) % 2, **options)

    assert_equal(at_once(ask, requests), expected)
    assert task.training, "the mode is what it was"
    assert_equal([ask(request) for request in requests[:6]], expected[:6])


METHODS = [Houlsby(), IA3(), Parallel(), PrefixTuning()]


@pytest.mark.parametrize("adapter", METHODS, ids=lambda adapter: type(adapter).__name__)
def test_no_method_tells_one_thread_of_another(adapter: Adapter, checkpoints: dict[str, str]) -> None:
    arguments = KINDS["text_classification"][1]
    task = TextClassification(checkpoint=checkpoints["text_classification"], **arguments, adapter=adapter)
    task.configure_model()
    disturb_(task.model)
    requests = [texts(number) for number in range(24)]
    expected = [task.predict(request) for request in requests]
    assert_equal(at_once(task.predict, requests), expected)


def test_a_request_that_fails_spoils_no_other(checkpoints: dict[str, str]) -> None:
    task = task_of("text_classification", checkpoints["text_classification"])
    expected = task.predict(texts(4))

    def ask(number: int) -> list[dict[str, Any]]:
        if number % 2:
            with pytest.raises(InputError, match=r"^E-INPUT"):
                task.predict([*texts(number), 7])
        return task.predict(texts(4))

    for answers in at_once(ask, range(16)):
        assert_equal(answers, expected)
    assert task.training


def test_texts_are_streamed_while_others_are_answered(checkpoints: dict[str, str]) -> None:
    task = task_of("text_generation", checkpoints["text_generation"])
    requests = [texts(number)[:1] for number in range(16)]
    expected = [task.predict(request, max_new_tokens=6)[0]["completion"] for request in requests]

    def ask(number: int) -> str:
        if number % 2:
            return "".join(task.stream(requests[number][0], max_new_tokens=6))
        return str(task.predict(requests[number], max_new_tokens=6)[0]["completion"])

    assert at_once(ask, range(16)) == expected


@pytest.fixture(scope="module")
def bank(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AdapterBank:
    """Three adapters of one base model."""
    settings: dict[str, dict[str, Any]] = {
        "films": {"targets": "all-linear", "rank": 2},
        "food": {"targets": ["query", "value"], "rank": 3},
        "third": {"targets": "mlp", "rank": 1},
    }
    folders = {}
    for name, adapter in settings.items():
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        task_of("text_classification", checkpoints["text_classification"], **adapter).save(folders[name])
    return loralight.load_many(folders, device="cpu")


def test_adapters_of_a_bank_and_rows_that_mix_them_are_used_at_once(bank: AdapterBank) -> None:
    task = bank["films"]
    assert isinstance(task, TextClassification)
    names = ["films", "food", None, "third"]

    @torch.no_grad()
    def of_rows(number: int) -> Tensor:
        rows = [names[(number + place) % 4] for place in range(2 + number % 4)]
        inputs = (texts(4) + texts(9))[: len(rows)]
        encoded = tokenise(task.tokenizer, inputs, padding=True, return_tensors="pt")
        with bank.rows(rows) as model:
            return torch.as_tensor(model(**encoded).logits)

    @torch.no_grad()
    def of_base(number: int) -> Tensor:
        ids = torch.randint(5, 100, (1 + number % 3, 4 + number), generator=torch.Generator().manual_seed(number))
        return torch.as_tensor(bank.base(input_ids=ids).logits)

    def ask(number: int) -> Any:
        if number % 3 == 2:
            return bank[("films", "food", "third")[number // 3 % 3]].predict(texts(number))
        return (of_rows if number % 3 else of_base)(number)

    found = at_once(ask, range(48))
    for number, one in enumerate(found):  # asked for last: nothing has been through the base before
        wanted = ask(number)
        if isinstance(wanted, Tensor):
            torch.testing.assert_close(one, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert_equal(one, wanted)


def test_rows_of_one_thread_are_not_those_of_another() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double().requires_grad_(False)
    model = copy.deepcopy(base)
    inject(model, Lora(targets="all", rank=2))
    disturb_(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad(), by_rows(base, {"a": parts_of(model, ())}, ["a", None, "a"]) as mixed:
        with ThreadPoolExecutor(1) as other:
            assert torch.equal(other.submit(lambda: base(x[:2])).result(), copy.deepcopy(base)(x[:2]))
        torch.testing.assert_close(mixed(x)[::2], model(x)[::2], rtol=1e-12, atol=1e-12)


class Mixture(nn.Module):
    """Weights that are read where they are used, as experts of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = torch.tanh(x @ self.weight[0].T + x @ self.weight[1].T)
        return x


@pytest.mark.parametrize("kind", ["experts", "attention", "encoder"])
@torch.inference_mode()
def test_layers_whose_weight_is_read_with_its_update_can_be_shared(kind: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(Mixture())
    if kind != "experts":
        model = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True).eval()
    targets = {"experts": "experts", "attention": "self_attn", "encoder": ["linear1", "linear2"]}[kind]
    inject(model, Lora(targets=targets, rank=2))
    disturb_(model)
    show_weights_(model)
    hook = model.register_forward_pre_hook(lambda *_: None)  # then the parts are called, and no fused kernel
    batches = [torch.randn(1 + number % 3, 2 + number % 5, 6) for number in range(160)]
    expected = [model(batch) for batch in batches]

    def ask(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.as_tensor(model(batch))

    torch.testing.assert_close(at_once(ask, batches), expected, rtol=1e-5, atol=1e-6)
    hook.remove()


def test_a_cast_is_that_of_the_thread_that_asks() -> None:
    def ask(number: int) -> bool:
        x = torch.full((3,), float(number))
        return all(torch.equal(kernels.cast_once(x, torch.bfloat16), x.bfloat16()) for _ in range(50))

    assert all(at_once(ask, range(160)))
