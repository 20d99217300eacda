"""Any encoder: the head is found, the loss is that of transformers, and entities are where the text has them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2
from torch import Tensor
from transformers import AutoModelForTokenClassification, pipeline

import loralight
from loralight.acceleration.unpadding import Unpadding, is_unpadded
from loralight.adapters import Lora, merge
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.reports.answers import read_answers
from loralight.reports.runs import read_run
from loralight.resources import resolve
from loralight.tasks.ner import Ner, NerData, module
from loralight.tasks.ner.decoding import decode
from loralight.tasks.ner.sentences import split_words
from loralight.tasks.ner.tags import Span, spans_of, tags_of
from loralight.tasks.ner.windows import join
from loralight.training.optim import parameter_groups

from .conftest import FAMILIES

TYPES = ["person", "place"]
SENTENCES = [
    ["Anna", "met", "Bob", "in", "unbelievably", "cold", "Paris"],
    ["They", "did", "n't", "speak", "."],
    ["Bob"],
]
LABELS = [[1, 0, 1, 0, 0, 0, 3], [0, 0, 0, 0, 0], [2]]
TEXTS = ["Anna met Bob Smith-Lee in Paris, near the old town hall.", "They didn't speak!", "Zoë?"]


def make(checkpoint: str, *, seed: int = 0, **arguments: Any) -> Ner:
    """A task with its model built, whose adapter does something already."""
    torch.manual_seed(seed)
    defaults = {"labels": TYPES, "adapter": Lora(targets="all-linear", rank=4), "max_length": 64, "stride": 8}
    task = Ner(checkpoint=checkpoint, **{**defaults, **arguments})
    task.configure_model()
    for name, parameter in trainable(task.model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(task.model.get_submodule("classifier").weight, std=0.5)
    return task.eval()


def batch_of(
    task: Ner, sentences: Sequence[Sequence[str]] = SENTENCES, labels: Sequence[Sequence[int]] = LABELS
) -> dict[str, Tensor]:
    numbers = torch.tensor([number for row in labels for number in row], dtype=torch.long)
    return {**join(task.encoder(sentences), task.encoder.padding), "labels": numbers}


def weight_of(task: Ner, batch: dict[str, Tensor]) -> float:
    weight = task.step(batch).weight
    assert isinstance(weight, Tensor)
    return float(weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_padding_is_the_step_with_it(checkpoints: Callable[[str], str], family: str) -> None:
    steps = []
    for unpadded in (True, False):
        task = make(checkpoints(family), accelerations={"unpadding": Unpadding()} if unpadded else {})
        is_known = (
            task.model.base_model._can_set_attn_implementation()
        )  # transformers 5.3 lets none be set in ModernBERT
        assert is_unpadded(task.model) == (unpadded and is_known)
        step = task.step(batch_of(task))
        step.loss.backward()  # type: ignore[no-untyped-call]
        steps.append((step, {name: p.grad for name, p in trainable(task.model).items()}))
    (found, gradients), (expected, expected_gradients) = steps
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.predictions, expected.predictions)
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_learns_in_full_and_the_encoder_s_linear_layers_are_adapted(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task = make(checkpoints(family))
    names = {id(layer): name for name, layer in task.model.named_modules()}
    head = {names[id(part)] for part in task.head(task.model)}
    assert "classifier" in head
    assert not head & {name for found in task.adapted.values() for name in found}  # PEFT's all-linear adapts it too
    learns = trainable(task.model)
    in_head = {name for name in learns if any(name.startswith(f"{part}.") for part in head)}
    assert task.fresh(task.model) <= in_head
    assert {name.rpartition(".")[2] for name in learns.keys() - in_head} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_lower_the_loss_and_leave_the_frozen_weights_alone(
    checkpoints: Callable[[str], str], family: str
) -> None:
    torch.manual_seed(0)
    task = make(checkpoints(family)).train()
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters() if not p.requires_grad}
    batch = batch_of(task)
    optimizer = torch.optim.AdamW(parameter_groups(task.model, task.adapter, lr=5e-3, head=task.head(task.model)))
    losses = []
    for _ in range(40):
        loss = task.step(batch).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    parameters = dict(task.model.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_on_the_first_sub_words(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task = make(checkpoints(family))
    batch = batch_of(task)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = torch.full_like(ids, -100)
    labels[batch["window"], batch["position"]] = batch["labels"]
    with torch.no_grad():
        expected = task.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(task.step(batch).loss, expected)
    assert weight_of(task, batch) == 13


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0, 0.0, 2.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_are_those_of_torch(
    tiny_bert: str, weights: list[float] | None, smoothing: float
) -> None:
    task = make(tiny_bert, class_weights=weights, label_smoothing=smoothing)
    batch = batch_of(task)
    weight = None if weights is None else torch.tensor(weights)
    with torch.no_grad():
        logits = task.model(batch["input_ids"], batch["attention_mask"]).logits[batch["window"], batch["position"]]
        expected = F.cross_entropy(logits, batch["labels"], weight=weight, label_smoothing=smoothing)
        torch.testing.assert_close(task.step(batch).loss, expected)
        assert weight_of(task, batch) == pytest.approx(13 if weight is None else float(weight[batch["labels"]].sum()))


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0, 0.1, 2.0]])
@pytest.mark.parametrize("max_length", [64, 6])
def test_sentences_one_by_one_make_what_they_do_in_a_batch(
    tiny_bert: str, weights: list[float] | None, max_length: int
) -> None:
    task = make(tiny_bert, class_weights=weights, max_length=max_length, stride=2)
    with torch.no_grad():
        whole = task.step(batch_of(task))
        parts = [task.step(batch_of(task, [s], [t])) for s, t in zip(SENTENCES, LABELS, strict=True)]
    sizes = [float(torch.as_tensor(part.weight)) for part in parts]
    mean = sum(size * float(part.loss) for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    assert mean == pytest.approx(float(whole.loss), rel=1e-5)
    for row, part, tags in zip(range(3), parts, LABELS, strict=True):
        assert torch.equal(part.predictions[0], whole.predictions[row, : len(tags)])
        assert part.targets.tolist() == [tags]
        assert (whole.targets[row, len(tags) :] == -1).all() and (whole.predictions[row, len(tags) :] == -1).all()


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0, 0.1, 2.0]])
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_without_words_has_no_loss_no_weight_and_finite_gradients(
    tiny_bert: str, weights: list[float] | None, training: bool
) -> None:
    task = make(tiny_bert, class_weights=weights).train(training)
    step = task.step(batch_of(task, [[], []], [[], []]))
    assert float(step.loss.detach()) == float(torch.as_tensor(step.weight)) == 0.0
    step.loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in trainable(task.model).values()]
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_tags_of_a_step_are_always_well_formed(tiny_bert: str) -> None:
    task = make(tiny_bert)
    with torch.no_grad():
        rows = task.step(batch_of(task)).predictions.tolist()
    for row, words in zip(rows, SENTENCES, strict=True):
        tags = [task.tags[number] for number in row[: len(words)]]
        assert tags_of(spans_of(tags), len(tags)) == tags


def test_balanced_weights_are_those_of_scikit_learn(tiny_bert: str) -> None:
    task = make(tiny_bert, label_counts=[70, 12, 8, 9, 1], class_weights="balanced")
    torch.testing.assert_close(task.class_weights, torch.tensor([100 / (5 * n) for n in (70, 12, 8, 9, 1)]))


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0, 1.0, 2.0]])
def test_a_new_head_begins_at_the_best_constant_answer(tiny_bert: str, weights: list[float] | None) -> None:
    counts = torch.tensor([70_000, 12_000, 8_000, 9_000, 2_000])
    task = make(tiny_bert, label_counts=counts.tolist(), class_weights=weights)
    answer = task.model.get_submodule("classifier").bias.detach().clone().requires_grad_()
    loss = F.cross_entropy(answer.expand(5, -1), torch.arange(5), weight=task.class_weights, reduction="none")
    (counts * loss).sum().backward()
    assert answer.grad is not None and float((answer.grad / counts).abs().max()) < 1e-2  # its loss falls nowhere


def test_class_weights_that_do_not_fit_are_an_error_that_names_the_tags(tiny_bert: str) -> None:
    with pytest.raises(InputError, match=r"^E-CLASS-WEIGHTS: .* 2 numbers for 5 labels \(O, B-person, I-person, B-pl"):
        make(tiny_bert, class_weights=[1.0, 2.0])


def test_a_head_for_other_tags_is_made_anew_and_trained(tiny_bert: str, tmp_path: Path) -> None:
    AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=9).save_pretrained(tmp_path)
    make(tiny_bert).encoder.tokenizer.save_pretrained(tmp_path)
    task = make(str(tmp_path))
    assert task.model.get_submodule("classifier").out_features == 5
    assert {"classifier.weight", "classifier.bias"} <= trainable(task.model).keys()


def directly(task: Ner, words: Sequence[str]) -> Tensor:
    """The log-probabilities of words in one window by transformers alone, (words, tags)."""
    encoded = task.encoder.tokenizer([task.encoder.lead + word for word in words], is_split_into_words=True)
    firsts: dict[int, int] = {}
    for position, word in enumerate(encoded.word_ids()):
        if word is not None:
            firsts.setdefault(word, position)
    with torch.no_grad():
        logits = task.model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0]
    return logits[list(firsts.values())].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_entities_are_the_best_tags_of_the_words_and_lie_where_the_text_has_them(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task = make(checkpoints(family))
    answers = task.predict(TEXTS, batch_size=2)
    assert [answer["text"] for answer in answers] == TEXTS
    assert sum(len(answer["entities"]) for answer in answers) > 3
    for text, answer in zip(TEXTS, answers, strict=True):
        places = split_words(text)
        log_p = directly(task, [text[start:end] for start, end in places])
        (numbers,) = decode(log_p, torch.tensor([len(places)])).tolist()
        expected = [
            {
                "type": label,
                "text": text[places[first][0] : places[last - 1][1]],
                "start": places[first][0],
                "end": places[last - 1][1],
                "score": pytest.approx(log_p[range(first, last), numbers[first:last]].exp().mean().item(), abs=1e-5),
            }
            for first, last, label in spans_of([task.tags[number] for number in numbers])
        ]
        assert answer["entities"] == expected
        assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["entities"])


def test_every_word_of_a_document_is_predicted_once_with_the_window_that_suits_it(tiny_bert: str) -> None:
    task = make(tiny_bert, max_length=32, stride=16)
    words = [word for n in range(100) for word in ("Anna", "met", "unbelievably", str(n), "Bob")]
    windows = task.encoder([words])[0]
    batch = join([windows], task.encoder.padding)
    with torch.no_grad():
        logits = task._logits(batch)
        for place in range(0, 500, 7):
            window, position = windows["window"][place], windows["position"][place]
            ids = torch.tensor([windows["input_ids"][window]])
            torch.testing.assert_close(logits[place], task.model(input_ids=ids).logits[0, position], rtol=0, atol=1e-5)
    assert logits.shape == (500, 5)
    text = " ".join(words)
    (answer,) = task.predict([text])
    assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["entities"])
    assert answer["entities"] == sorted(answer["entities"], key=lambda one: one["start"])
    assert max(one["end"] for one in answer["entities"]) > len(text) - 60


def test_a_long_text_is_read_a_few_windows_at_a_time(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(tiny_bert, max_length=16, stride=4)
    text = " ".join(SENTENCES[0] * 30)
    expected = task.predict([text, "Bob"])
    monkeypatch.setattr(module, "_WINDOWS", 3)
    sizes = []
    task.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = task.predict([text, "Bob"])
    assert max(sizes) == 3 and len(sizes) > 5
    for one, other in zip(found, expected, strict=True):
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in one["entities"]] == other["entities"]


def test_words_in_a_list_are_told_by_their_number_too(tiny_bert: str) -> None:
    task = make(tiny_bert, words_column="tokens")
    words = ["Anna", "met", "St. Bob", "in", "Paris"]
    (answer,) = task.predict([words])
    assert answer["text"] == "Anna met St. Bob in Paris"
    assert answer["entities"]
    for one in answer["entities"]:
        assert answer["text"][one["start"] : one["end"]] == one["text"]
        assert " ".join(words[one["word_start"] : one["word_end"]]) == one["text"]
    assert task.predict([{"tokens": words, "id": 7}]) == [answer]


def test_records_have_their_text_in_the_column_of_the_data(tiny_bert: str) -> None:
    task = make(tiny_bert, text_column="Body")
    assert task.predict([{"Body": TEXTS[0], "id": 1}]) == task.predict(TEXTS[:1])


def test_a_threshold_leaves_the_less_sure_out(tiny_bert: str) -> None:
    task = make(tiny_bert)
    everything = [one for answer in task.predict(TEXTS) for one in answer["entities"]]
    scores = sorted(one["score"] for one in everything)
    middle = scores[len(scores) // 2]
    assert scores[0] < middle
    found = [one for answer in task.predict(TEXTS, threshold=middle) for one in answer["entities"]]
    assert found == [one for one in everything if one["score"] >= middle]


@pytest.mark.parametrize("text", ["", "  \n", "\u200d", "a" * 500, "\x00", "😀" * 90])
def test_any_text_at_all_has_an_answer(tiny_bert: str, text: str) -> None:
    (answer,) = make(tiny_bert).predict([text])
    assert answer["text"] == text
    assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["entities"])


@pytest.mark.parametrize("given", [5, None, ["a", ""], ["a", 3], ("a", None), {"txt": "a"}, {"text": None}, b"a"])
def test_an_input_that_is_no_text_is_an_error_that_shows_it(tiny_bert: str, given: Any) -> None:
    with pytest.raises(
        InputError, match=r"^E-INPUT: .*give a text, a list of words, or a record with 'text' or 'tokens'"
    ):
        make(tiny_bert).predict(["a fine text", given])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("family", ["BERT", "RoBERTa"])
def test_peft_loads_the_adapter_and_computes_the_same(
    checkpoints: Callable[[str], str], tmp_path: Path, family: str
) -> None:
    checkpoint = checkpoints(family)
    task = make(checkpoint)
    task.save(tmp_path / "adapter")
    torch.manual_seed(1)  # another random head than ours was
    base = AutoModelForTokenClassification.from_pretrained(resolve(checkpoint), num_labels=5).eval()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert type(loaded).__name__ == "PeftModelForTokenClassification"
    inputs = {name: tensor for name, tensor in batch_of(task).items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found, expected = (model(**inputs).logits[inputs["attention_mask"].bool()] for model in (loaded, task.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # what stands at padding means nothing


@pytest.fixture
def settings(checkpoints: Callable[[str], str], towns: Path) -> list[str]:
    """Overrides of `loralight train` for a run of seconds that learns most of who lives where."""
    model = f"model.checkpoint='{checkpoints('BERT')}'"
    small = ["model.max_length=12", "model.stride=4", "data.batch_size=8", "optimizer.lr=0.01", "trainer.max_epochs=4"]
    return ["task=ner", "data=ner", f"data.path='{towns}'", model, *small, "hydra.run.dir=run"]


@pytest.fixture
def trained(settings: list[str], in_process: Callable[..., int], tmp_path: Path) -> Path:
    assert in_process("train", *settings, "trainer=cpu") == 0
    return tmp_path / "run"


def test_what_is_reported_predicted_and_evaluated_is_one_and_the_same_and_seqeval_agrees(
    settings: list[str], towns: Path, in_process: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    assert in_process("train", *settings, "trainer=cpu") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "person: Anna" in printed and "{'type'" not in printed
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert reported["test/f1"] > 0.3

    rows = [json.loads(line) for line in (towns / "test.jsonl").read_text().splitlines()]
    task = loralight.load("run")
    answers: list[dict[str, Any]] = task.predict([row["text"] for row in rows])
    truths = [_as_tags(row["text"], row["entities"], "label") for row in rows]
    found = [_as_tags(answer["text"], answer["entities"], "type") for answer in answers]
    precision, recall, f1, _ = precision_recall_fscore_support(truths, found, average="micro", scheme=IOB2)
    measured = [reported[f"test/{name}"] for name in ("precision", "recall", "f1")]
    assert measured == pytest.approx([precision, recall, f1], abs=1e-6)
    kept = read_answers(read_run(tmp_path / "run"))
    assert kept is not None and len(kept.rows) == len(rows)
    hits, of = (sum(numbers) for numbers in zip(*(answer.counts for answer in kept.rows.values()), strict=True))
    assert hits / of == pytest.approx(f1, abs=1e-6)
    for number, row in kept.rows.items():
        words = [rows[number]["text"][start:end] for start, end in split_words(rows[number]["text"])]
        assert row.input == (None if row.given == row.right else words)

    assert in_process("evaluate", "run=run", "output=again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == pytest.approx({name: value for name, value in reported.items() if name.startswith("test/")})

    (tmp_path / "texts.txt").write_text("\n".join(row["text"] for row in rows))
    assert in_process("predict", "run=run", "input=texts.txt", "output=out.jsonl", "options.threshold=0.1") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in rows]

    few = [row for row in rows if {one["label"] for one in row["entities"]} != {"person", "place"}]
    more = [{"text": "In Lima", "entities": [{"start": 3, "end": 7, "label": "place"}]}]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, few + more)))
    assert in_process("evaluate", "run=run", "data.test=other.jsonl", "output=other.json") == 0
    other = json.loads((tmp_path / "other.json").read_text())
    assert other.keys() == again.keys(), "the types are those of training"


def _as_tags(text: str, entities: list[dict[str, Any]], key: str) -> list[str]:
    places = split_words(text)
    spans = []
    for one in entities:
        inside = [n for n, (start, end) in enumerate(places) if one["start"] <= start and end <= one["end"]]
        spans.append(Span(inside[0], inside[-1] + 1, one[key]))
    return tags_of(spans, len(places))


def test_the_merged_model_is_a_pipeline_of_transformers_that_finds_the_same(trained: Path) -> None:
    task = loralight.load(trained)
    assert isinstance(task, Ner)
    texts = ["Anna lives in Lima.", "In Oslo, Bob sleeps", "nobody is there"]
    found = task.predict(texts)
    merge(task.model)
    tagger = pipeline(
        "token-classification",
        model=task.model,
        tokenizer=task.encoder.tokenizer,
        aggregation_strategy="first",
        device="cpu",
    )
    for answer, expected in zip(found, tagger(texts), strict=True):
        ours = [(one["type"], one["start"], one["end"]) for one in answer["entities"]]
        assert ours == [(one["entity_group"], one["start"], one["end"]) for one in expected]
        assert [one["score"] for one in answer["entities"]] == pytest.approx(
            [one["score"] for one in expected], abs=1e-4
        )


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    settings: list[str], loralight: Callable[..., Any], tmp_path: Path
) -> None:
    done = loralight("train", *settings, "trainer=ddp_cpu")
    assert done.returncode == 0, done.stderr
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert loralight("evaluate", "run=run", "output=one.json").returncode == 0
    one = json.loads((tmp_path / "one.json").read_text())
    assert reported["test/f1"] > 0.3
    assert one == pytest.approx({name: value for name, value in reported.items() if name.startswith("test/")}, rel=1e-5)


@pytest.mark.slow
def test_the_demo_is_learnt(in_process: Callable[..., int], tmp_path: Path) -> None:
    assert in_process("train", "task=ner", "trainer=cpu", "hydra.run.dir=run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["test/f1"] > 0.85
    task = loralight.load(tmp_path / "run")
    (answer,) = task.predict(["Maria Keller of Bluefin Robotics called from Lisbon, write to maria@bluefin.example"])
    assert {one["type"]: one["text"] for one in answer["entities"]} == {
        "person": "Maria Keller",
        "organisation": "Bluefin Robotics",
        "location": "Lisbon",
        "email": "maria@bluefin.example",
    }


def test_training_data_given_as_words_teaches_what_texts_are_predicted_by(tiny_bert: str, tmp_path: Path) -> None:
    rows = [{"tokens": ["Bob", "ran"], "ner_tags": ["B-x", "O"]}] * 2
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"words": "tokens", "tags": "ner_tags", "text": "text", "entities": "entities"}
    data = NerData(checkpoint=tiny_bert, columns=columns, path=str(tmp_path), max_length=16, stride=2)
    data.setup()
    task = make(tiny_bert, **data.model_arguments())
    as_text, as_words = task.predict(["Bob ran"])[0], task.predict([["Bob", "ran"]])[0]
    assert [one["text"] for one in as_text["entities"]] == [one["text"] for one in as_words["entities"]]
