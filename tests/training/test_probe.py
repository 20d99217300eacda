"""The linear probe is scikit-learn's logistic regression, and leaves the model as it was."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn

from loralight.adapters import LinearProbe, Lora
from loralight.data import TaskData
from loralight.tasks.text_classification import TextClassification, TextClassificationData
from loralight.training.probe import _DECAYS, NoProbe, _Items, fit, fit_probe, linear_head, start_head_
from loralight.training.step import Step, measure_
from loralight.training.task import AdapterTask

CPU = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def made_features(num_labels: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_labels, 12, generator=generator)
    targets = torch.arange(300) % num_labels
    features = centres[targets] + torch.randn(300, 12, generator=generator)
    return features * torch.linspace(0.1, 30, 12) + 5, targets  # of unlike scales, as a network's are


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # of scikit-learn 1.7 with SciPy 1.17
@pytest.mark.parametrize("num_labels", [2, 5])
def test_each_candidate_is_scikit_learns_logistic_regression(num_labels: int) -> None:
    features, targets = made_features(num_labels)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    found = list(fit(features, targets, num_labels=num_labels))
    for decay, ours in list(zip(_DECAYS, found, strict=True))[1:4]:
        # a sum of losses and half the squared weights against a mean of losses and decay / 2 / labels of them
        share = decay / num_labels
        # of two classes scikit-learn has one row of weights, which is the difference of ours: half the penalty
        strength = 1 / (len(targets) * share * (0.5 if num_labels == 2 else 1.0))
        theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(standard.double().numpy(), targets.numpy())
        expected = torch.from_numpy(theirs.predict_proba(standard.double().numpy())).float()
        assert torch.allclose(ours.logits(features).softmax(-1), expected, atol=5e-3)


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # of scikit-learn 1.7 with SciPy 1.17
def test_several_labels_a_row_are_a_regression_each() -> None:
    features, numbers = made_features(4)
    targets = torch.stack([(numbers == 0) | (numbers == 1), numbers == 2], dim=1).float()
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    ours = list(fit(features, targets, num_labels=2))[2]
    # the mean over rows and labels, and decay / 2 / labels
    theirs = OneVsRestClassifier(LogisticRegression(C=1 / (len(targets) * _DECAYS[2]), max_iter=5000, tol=1e-8))
    expected = theirs.fit(standard.double().numpy(), targets.numpy().astype(np.int64)).predict_proba(standard.numpy())
    assert torch.allclose(ours.logits(features).sigmoid(), torch.from_numpy(expected).float(), atol=5e-3)


@pytest.fixture
def work(tiny_bert: str, texts: Path) -> Callable[..., tuple[AdapterTask, TaskData]]:
    def make(adapter: Any = None, pooling: str = "mean", **settings: Any) -> tuple[AdapterTask, TaskData]:
        columns = {"text": "text", "label": "label"}
        data = TextClassificationData(checkpoint=tiny_bert, columns=columns, path=str(texts), max_length=16)
        data.setup()
        task = TextClassification(
            checkpoint=tiny_bert,
            adapter=adapter or Lora(targets="all-linear"),
            pooling=pooling,
            optimizer=partial(torch.optim.AdamW, lr=1e-3),
            **data.model_arguments(),
            **settings,
        )
        task.configure_model()
        return task, data

    return make


def test_a_probe_changes_nothing_of_the_model(work: Callable[..., tuple[AdapterTask, TaskData]]) -> None:
    task, data = work()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    probe = fit_probe(task, data, CPU)
    assert task.training and task.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    assert {"validation/accuracy", "test/accuracy"} <= probe.scores.keys()


def test_a_head_that_starts_at_the_probe_scores_what_was_told(
    work: Callable[..., tuple[AdapterTask, TaskData]],
) -> None:
    task, data = work(adapter=LinearProbe())
    probe = fit_probe(task, data, CPU)
    start_head_(task, probe.classifier)
    rows = [text for text, _ in data.examples(20)]
    truths = [truth for _, truth in data.examples(20)]
    right = [answer["label"] == truth for answer, truth in zip(task.predict(rows), truths, strict=True)]
    assert sum(right) / len(right) == pytest.approx(probe.scores["test/accuracy"])
    assert probe.scores["test/accuracy"] > 0.7  # the words of the two classes are told apart without training


def test_a_probe_has_the_features_that_the_head_reads(work: Callable[..., tuple[AdapterTask, TaskData]]) -> None:
    task, data = work()
    layer = linear_head(task)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    task.eval()
    batches = list(data.train_dataloader())
    with torch.no_grad():
        for batch in batches:
            task.step(batch)
    hook.remove()
    features, targets = torch.cat(seen), torch.cat([batch["labels"] for batch in batches])
    direct = min(
        fit(features, targets, num_labels=2),
        key=lambda one: abs(float((one.weight - fit_probe(task, data, CPU).classifier.weight).abs().max())),
    )
    assert torch.allclose(direct.weight, fit_probe(task, data, CPU).classifier.weight, atol=1e-4)


def test_a_probe_of_several_labels_is_scored_at_thresholds_of_its_own(tiny_bert: str, tmp_path: Path) -> None:
    for split, first in {"train": 0, "validation": 60}.items():  # which rows have soup, no word tells
        rows = [f"row {n % 10},{int(n * n % 11 in (4, 5))},{n % 2}" for n in range(first, first + 60)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,soup,odd", *rows]) + "\n")
    data = TextClassificationData(
        checkpoint=tiny_bert, columns={"text": "text", "label": ["soup", "odd"]}, path=str(tmp_path), max_length=16
    )
    data.setup()
    scores = {}
    for thresholds in ("auto", 0.5):
        task = TextClassification(
            checkpoint=tiny_bert, adapter=LinearProbe(), pooling="mean", thresholds=thresholds, **data.model_arguments()
        )
        task.configure_model()
        scores[thresholds] = fit_probe(task, data, CPU).scores["validation/f1"]
        assert task.thresholds == thresholds, "what the probe chose is not what training will"
    assert scores["auto"] > scores[0.5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [("class", "one class"), ("none", "no classes"), ("two", "more than one linear layer")],
)
def test_where_there_is_no_probe_the_reason_is_told(
    work: Callable[..., tuple[AdapterTask, TaskData]], change: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = work(pooling="model" if change == "two" else "mean")
    if change == "class":
        monkeypatch.setattr(task, "probed", lambda features, batch: (features, torch.zeros_like(batch["labels"])))
    if change == "none":
        monkeypatch.setattr(task, "probed", lambda features, batch: (features, batch["labels"].float()))
    with pytest.raises(NoProbe, match=reason):
        fit_probe(task, data, CPU)
    assert task.training


def test_a_probe_takes_as_many_batches_as_the_trainer_does(
    work: Callable[..., tuple[AdapterTask, TaskData]],
) -> None:
    task, data = work()
    seen: list[int] = []
    task.model.register_forward_pre_hook(lambda *_: seen.append(1))
    fit_probe(task, data, CPU)
    every = len(seen)
    few = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        limit_train_batches=1,
        limit_val_batches=1,
        limit_test_batches=0.5,
    )
    seen.clear()
    fit_probe(task, data, few)
    assert len(seen) == 3 < every  # train, validation, half of the two batches of test


def test_validation_is_read_once_and_scored_as_by_a_second_pass(
    work: Callable[..., tuple[AdapterTask, TaskData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = work()
    seen: list[int] = []
    task.model.register_forward_pre_hook(lambda *_: seen.append(1))
    once = fit_probe(task, data, CPU).scores
    batches = len(seen)
    with monkeypatch.context() as patched:
        patched.setattr(_Items, "steps_with", lambda *_: None)
        assert fit_probe(task, data, CPU).scores == pytest.approx(once, abs=1e-6)
    assert len(seen) - batches == batches + len(data.val_dataloader())


def test_rows_beyond_those_that_choose_the_weight_decay_are_scored_too(
    work: Callable[..., tuple[AdapterTask, TaskData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = work()
    monkeypatch.setattr(data, "eval_batch_size", 4)
    monkeypatch.setattr("loralight.training.probe._MOST_NUMBERS", 0)
    monkeypatch.setattr("loralight.training.probe._LEAST_ITEMS", 8)
    monkeypatch.setattr("loralight.training.probe._refuse_useless", lambda *_, **__: None)  # so few are of one class
    scored: list[Step] = []
    monkeypatch.setattr("loralight.training.probe.measure_", lambda *given: measure_(*given) or scored.append(given[1]))
    fit_probe(task, data, CPU)
    assert sum(len(step.targets) for step in scored) == len(data.splits["validation"]) + len(data.splits["test"])
    assert len(data.splits["validation"]) > 8


ROWS: dict[str, tuple[dict[str, str], str]] = {
    "a class that only validation has": (
        {"train": "a 1,x\nb 2,y\nc 3,x\nd 4,y\n", "validation": "a,x\nb,z\n"},
        "1 of 3 classes are in validation and in no training row",
    ),
    "one class": ({"train": "a,x\nb,x\nc,x\n", "validation": "d,x\n"}, "all training rows are of one class"),
    "fewer rows than classes": (
        {"train": "a,x\nb,y\n", "validation": "c,x\n"},
        "2 training rows are fewer than 3 classes",
    ),
    "all rows alike": (
        {"train": "a,x\na,y\na,x\na,y\n", "validation": "c,x\n"},
        "all training rows are alike to the model",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_make_no_probe_are_told_in_a_line_and_the_head_begins_at_random(
    in_process: Callable[..., int], tiny_bert: str, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files, reason = ROWS[case]
    for split, rows in files.items():
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    data = [f"data.{split}={split}.csv" for split in files]
    settings = ["data=text_classification", "data.labels=[x,y,z]", f"model.checkpoint='{tiny_bert}'", "trainer=cpu"]
    run = ["model.max_length=16", "task.pooling=mean", "trainer.max_epochs=1", "task.head_start=probe"]
    assert in_process("train", *settings, *data, *run, "hydra.run.dir=run") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "fitting a linear probe" in line]) == 1
    told = [line for line in lines if "no linear probe" in line]
    assert len(told) == 1 and told[0].endswith(f"no linear probe: {reason}; the head starts at random")


def test_more_features_than_rows_leave_one_best_classifier() -> None:
    features, targets = torch.randn(10, 200, dtype=torch.double).float(), torch.arange(10) % 2
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    ours = list(fit(features, targets, num_labels=2))[2]
    theirs = LogisticRegression(C=1 / (10 * _DECAYS[2] / 2 * 0.5), max_iter=5000, tol=1e-8).fit(standard, targets)
    expected = torch.from_numpy(theirs.predict_proba(standard)).float()
    assert torch.allclose(ours.logits(features).softmax(-1), expected, atol=5e-3)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"limit_val_batches": 0}, "no rows to fit or to choose it by"), ({"limit_test_batches": 0}, None)],
)
def test_splits_that_a_trainer_passes_over_are_not_measured(
    work: Callable[..., tuple[AdapterTask, TaskData]], limits: dict[str, Any], reason: str | None
) -> None:
    task, data = work()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **limits)
    if reason is None:
        assert {name.partition("/")[0] for name in fit_probe(task, data, trainer).scores} == {"validation"}
        return
    with pytest.raises(NoProbe, match=reason):
        fit_probe(task, data, trainer)


def test_several_labels_that_all_rows_have_alike_make_no_probe(
    work: Callable[..., tuple[AdapterTask, TaskData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = work()
    monkeypatch.setattr(task, "probed", lambda features, batch: (features, torch.ones(len(features), 2)))
    with pytest.raises(NoProbe, match="all training rows have one answer"):
        fit_probe(task, data, CPU)


def test_a_base_without_pooled_features_makes_no_probe(
    work: Callable[..., tuple[AdapterTask, TaskData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the classes of decoders, whose head reads every token."""
    task, data = work()
    monkeypatch.setattr(task, "probed", lambda features, batch: (features[:, None].repeat(1, 3, 1), batch["labels"]))
    with pytest.raises(NoProbe, match="a vector for each token"):
        fit_probe(task, data, CPU)
    head = nn.Linear(4, 2, bias=False)
    monkeypatch.setattr(task, "head", lambda model: [head])
    with pytest.raises(NoProbe, match="has no bias"):
        linear_head(task)


def test_a_task_without_a_head_has_none(work: Callable[..., tuple[AdapterTask, TaskData]]) -> None:
    task, _ = work()
    task.head = lambda model: []  # type: ignore[method-assign]
    with pytest.raises(NoProbe, match="no head"):
        linear_head(task)
    task.head = lambda model: [nn.Sequential(nn.Dropout(), task.model.pooled_classifier)]  # type: ignore[method-assign]
    assert linear_head(task) is task.model.pooled_classifier
