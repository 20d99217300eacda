import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from loralight.acceleration import FrozenProducts, GradientCheckpointing, frozen_linear
from loralight.adapters import AdaLora, Dora, FullFineTuning, LinearProbe, Lora
from loralight.adapters.base import trainable
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.kernels import onednn
from loralight.testing import TaskContract
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.hooks import owned_hooks
from loralight.training.optim import schedule
from loralight.training.task import AdapterTask, Step

from ..fitting import Batches, trainer

Batch = tuple[Tensor, Tensor]
OWNED = (
    "automatic_optimization",
    "configure_model",
    "configure_optimizers",
    "load_from_checkpoint",
    "load_state_dict",
    "on_before_optimizer_step",
    "on_fit_end",
    "on_load_checkpoint",
    "on_save_checkpoint",
    "on_train_epoch_end",
    "optimizer_step",
    "test_step",
    "to",
    "train",
    "training_step",
    "validation_step",
)


class Net(nn.Module):
    """A frozen part with batch norm and dropout, and a head with both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Toy(AdapterTask):
    def __init__(self, model: nn.Module | None = None, **training: Any) -> None:
        super().__init__(**{"adapter": Lora(targets="*.*", rank=2, lr_rank=None), **training})
        self.given = [Net() if model is None else model]  # in a list: no module of the task yet

    def build_model(self) -> nn.Module:
        return self.given[0]

    def head(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule("head")]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(3, average="micro")})

    def step(self, batch: Batch) -> Step:
        logits = self.model(batch[0])
        return Step(F.cross_entropy(logits, batch[1]), logits, batch[1])

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        assert not self.training and torch.is_inference_mode_enabled()
        return [{"of": given, "batch": len(inputs)} for given in inputs]


def built(**arguments: Any) -> Toy:
    task = Toy(**{"optimizer": partial(torch.optim.SGD, lr=0.05), **arguments})
    task.configure_model()
    return task


def batches_of(*sizes: int, dtype: torch.dtype = torch.float32) -> Batches:
    random = torch.Generator().manual_seed(0)
    rows = (torch.randn(n, 4, generator=random).to(dtype) for n in sizes)
    return Batches((x, torch.randint(0, 3, (len(x),), generator=random)) for x in rows)


def weights(task: AdapterTask) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.model.state_dict().items()}


def learned(task: AdapterTask) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable(task.model).items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_base_class_owns_these_hooks_of_lightning() -> None:
    assert owned_hooks(AdapterTask) == sorted(OWNED)


def test_the_contract_of_tasks_finds_a_frozen_part_that_starts_at_random() -> None:
    class Anew(Toy):
        def build_model(self) -> nn.Module:
            return Net()

    task = Anew()
    task.configure_model()
    with pytest.raises(AssertionError, match=r"body\.0\.bias"):
        TaskContract.test_what_starts_at_random_learns(TaskContract(), task)


class RowsOfToy(TaskData):
    """Six rows."""

    def load(self) -> dict[str, Any]:
        ((rows, labels),) = batches_of(6)
        return {key: list(zip(rows, labels, strict=True)) for key in ("train", "validation")}

    def collate(self, rows: list[Any]) -> Batch:
        features, labels = zip(*rows, strict=True)
        return torch.stack(features), torch.stack(labels)


class Negatives(Toy):
    def step(self, batch: Batch) -> Step:
        logits = self.model(batch[0])
        return Step(F.cross_entropy(logits @ logits.T, torch.arange(len(logits))), logits, batch[1])


class Samples(Toy):
    def step(self, batch: Batch) -> Step:
        found = super().step(batch)
        return found._replace(loss=found.loss * torch.rand(()))


@pytest.mark.parametrize(
    ("kind", "declared", "refused"),
    [
        (Toy, {}, set()),
        (Toy, {"rows_depend": True}, {"one_by_one"}),
        (Toy, {"step_draws": True}, {"draws"}),
        (Negatives, {}, {"one_by_one"}),
        (Negatives, {"rows_depend": True}, set()),
        (Samples, {}, {"draws"}),
        (Samples, {"step_draws": True}, set()),
    ],
)
def test_the_contract_takes_the_exceptions_that_are_declared_and_true(
    kind: type[Toy], declared: dict[str, bool], refused: set[str]
) -> None:
    contract, data, task = type("Contract", (TaskContract,), declared)(), RowsOfToy(), kind()
    data.setup()
    task.configure_model()
    task.eval()
    tests = {
        "draws": contract.test_a_step_draws_random_numbers_only_if_it_is_declared,
        "one_by_one": contract.test_a_batch_has_the_loss_of_its_rows_one_by_one,
    }
    failed = set()
    for name, test in tests.items():
        try:
            test(data, task)
        except AssertionError:
            failed.add(name)
        except pytest.skip.Exception:
            continue
    assert failed == refused


@pytest.mark.parametrize("hook", OWNED)
def test_a_task_that_overrides_a_hook_of_the_base_class_cannot_be_defined(hook: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine overrides {hook}, which AdapterTask owns"):
        type("Mine", (Toy,), {hook: lambda self, *arguments: None})


def test_nor_can_one_that_inherits_such_a_hook_from_a_mixin() -> None:
    class Mixin:
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

    with pytest.raises(TypeError, match="Mine overrides training_step"):
        type("Mine", (Mixin, Toy), {})


def test_a_task_may_use_the_hooks_that_are_its_own() -> None:
    type("Mine", (Toy,), {"on_fit_start": lambda self: None, "step": lambda self, batch: None})


def every_train_call(task: AdapterTask) -> Iterator[Callable[[], Any]]:
    yield task.train
    yield lambda: task.eval().train()
    yield lambda: task.train(False).train(True)
    yield lambda: [part.train() for part in task.children()]
    yield lambda: [module.train() for module in task.model.modules()]


@pytest.mark.parametrize("number", range(5))
def test_frozen_batch_norm_keeps_its_statistics_whatever_train_is_called(number: int) -> None:
    task = built()
    list(every_train_call(task))[number]()
    before = weights(task)
    train_again = lightning.pytorch.callbacks.LambdaCallback(
        on_train_batch_start=lambda *_: list(every_train_call(task))[number]()
    )
    trainer(callbacks=[train_again]).fit(task, batches_of(8, 8, 8), batches_of(8))
    moved = {name for name, tensor in weights(task).items() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if name.startswith("body.1.")]
    assert {"head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked"} <= moved


@pytest.mark.parametrize(
    ("policy", "changing"),
    [
        ("frozen", set()),
        ("statistics", {"running_mean", "running_var", "num_batches_tracked"}),
        ("affine", {"weight", "bias"}),
    ],
)
def test_batch_norm_changes_what_its_policy_says_and_that_is_saved(policy: Any, changing: set[str]) -> None:
    task, other = built(batch_norm=policy), built(model=Net(), batch_norm=policy)
    before = weights(task)
    trainer().fit(task, batches_of(8, 8, 8), batches_of(8))
    moved = {name for name, tensor in weights(task).items() if not torch.equal(tensor, before[name])}
    saved = task.trainable_tensors().keys()
    for kept in (moved, saved):
        assert changing <= {name.removeprefix("body.1.") for name in kept if name.startswith("body.1.")}
    assert {name for name in moved if name.startswith("body.1.")} == {f"body.1.{name}" for name in changing}
    assert {name for name in moved if name.startswith("body")} <= saved
    learns = {id(p) for p in task.parameters() if p.requires_grad}
    optimized = [id(p) for group in task.optimizers().param_groups for p in group["params"]]  # type: ignore[union-attr]
    assert len(optimized) == len(learns) and set(optimized) == learns
    x = torch.randn(20, 4)
    other.model.load_state_dict({n: t for n, t in weights(task).items() if n not in saved}, strict=False)
    other.load_trainable(task.trainable_tensors(), "here")
    assert torch.equal(other.eval().model(x), task.eval().model(x))


def test_a_batch_norm_policy_for_a_model_without_any_is_an_error() -> None:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8))

    with pytest.raises(InputError, match="E-BATCH-NORM"):
        built(model=Plain(), batch_norm="statistics", adapter=Lora(targets="body.0", rank=2))


def test_in_full_fine_tuning_batch_norm_learns_whatever_its_policy_for_frozen_layers() -> None:
    task = built(adapter=FullFineTuning(), batch_norm="statistics")
    assert task.model.body[1].training and task.model.body[1].weight.requires_grad and not task.adapted_norms


@pytest.mark.parametrize("base_dropout", [True, False])
def test_dropout_of_frozen_layers_obeys_base_dropout_and_that_of_the_head_stays_on(base_dropout: bool) -> None:
    task = built(base_dropout=base_dropout)
    x = torch.randn(50, 8)
    for part, on in ((task.model.body[2], base_dropout), (task.model.head[1], True)):
        assert torch.equal(part(x), x) is not on
    task.eval()
    assert torch.equal(task.model.body[2](x), x) and torch.equal(task.model.head[1](x), x)


def test_dropout_of_the_adapter_stays_on_without_base_dropout() -> None:
    task = built(base_dropout=False, adapter=Lora(targets="body.0", dropout=0.5))
    nn.init.normal_(task.model.body[0].lora_B)
    x = torch.randn(50, 4)
    assert not torch.equal(task.model.body[0](x), task.model.body[0](x))


def test_prepacked_training_computes_the_same_and_evaluation_does_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (onednn, frozen_linear):
        monkeypatch.setattr(module, "gains", lambda values, packed=False: True)
    packing = {"products": FrozenProducts(prepack=True)}
    plain, packed = built(base_dropout=False), built(base_dropout=False, accelerations=packing)
    packed.model.load_state_dict(plain.model.state_dict())
    batches = batches_of(4, 4)
    for task in (plain, packed):
        trainer().fit(task, batches, batches)
    assert packed.model.body[0].weight in onednn._entries
    for name, tensor in learned(plain).items():
        torch.testing.assert_close(learned(packed)[name], tensor, rtol=1e-4, atol=1e-6)
    plain.load_trainable(packed.trainable_tensors(), "the other")
    with torch.no_grad():
        assert torch.equal(plain.eval().model(batches[0][0]), packed.eval().model(batches[0][0]))


def test_a_model_that_cannot_recompute_its_blocks_is_an_error() -> None:
    with pytest.raises(InputError, match=r"E-RECOMPUTE.*Net is no model of transformers or timm"):
        trainer().fit(built(accelerations={"checkpointing": GradientCheckpointing()}), batches_of(4), batches_of(4))


def test_prepacking_what_cannot_be_packed_is_an_error() -> None:
    task = built(model=Net().double(), accelerations={"products": FrozenProducts(prepack=True)})
    with pytest.raises(
        InputError, match=r"E-PREPACK.*float64 weights on cpu.*acceleration\.frozen_products\.prepack=false"
    ):
        trainer().fit(task, batches_of(4, dtype=torch.float64), batches_of(4, dtype=torch.float64))


def by_transformers(folder: Path) -> nn.Module:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
            self.head = self.bert.classifier

        def forward(self, x: Tensor) -> Tensor:
            return self.bert((x > 0).long()).logits

    return Classifier()


def by_timm(folder: Path) -> nn.Module:
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), folder / "weights.pth")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            overlay = {"file": str(folder / "weights.pth"), "num_classes": 5}
            self.net = timm.create_model("test_resnet", True, pretrained_cfg_overlay=overlay, num_classes=3)
            self.head = self.net.get_classifier()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, :1, None, None].expand(-1, 3, 32, 32))

    return Classifier()


def by_torch(folder: Path) -> nn.Module:
    torch.save(Net().body.state_dict(), folder / "body.pth")
    model = Net()
    model.body.load_state_dict(torch.load(folder / "body.pth"))
    return model


@pytest.mark.parametrize("load", [by_transformers, by_timm, by_torch])
def test_a_new_parameter_that_would_stay_frozen_is_an_error_whoever_loads_the_weights(
    load: Callable[[Path], nn.Module], tmp_path: Path
) -> None:
    class Loading(Toy):
        def build_model(self) -> nn.Module:
            return load(tmp_path)

    class Forgetful(Loading):
        def head(self, model: nn.Module) -> list[nn.Module]:
            return []

    arguments: dict[str, Any] = {
        "adapter": Lora(targets="all-linear", rank=2),
        "optimizer": partial(torch.optim.SGD, lr=0.05),
    }
    with pytest.raises(InputError, match=r"^E-FRESH-FROZEN: .*weight.*: newly initialised"):
        Forgetful(**arguments).configure_model()
    task = Loading(**{**arguments, "adapter": LinearProbe()})
    task.configure_model()
    assert {id(p) for p in trainable(task.model).values()} == {id(p) for p in task.head(task.model)[0].parameters()}
    before = learned(task)
    trainer().fit(task, batches_of(4, 4), batches_of(4))
    assert not equal(learned(task), before)


def test_a_frozen_parameter_that_is_to_stay_as_it_was_initialised_can_be_left_out(tmp_path: Path) -> None:
    class Projected(Toy):
        def build_model(self) -> nn.Module:
            model = by_torch(tmp_path)
            model.projection = nn.Linear(4, 4, bias=False)
            return model

        def fresh(self, model: nn.Module) -> set[str]:
            return super().fresh(model) - {"projection.weight"}

    Projected(adapter=Lora(targets="body.0", rank=2)).configure_model()


def test_a_parameter_that_no_gradient_reaches_is_an_error_that_names_it() -> None:
    model = Net()
    model.unused = nn.ModuleDict({"side": nn.Linear(4, 4)})
    task = built(model=model)
    before = learned(task)
    message = r"^E-UNREACHED: no gradient reaches unused\.side: .*; set adapter.exclude='\[\^unused\.side\]'$"
    with pytest.raises(InputError, match=message):
        trainer().fit(task, batches_of(8), batches_of(8))
    assert equal(learned(task), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_loss_that_spoils_a_running_mean_stops_training_at_once_with_the_weights_of_the_last_good_step(
    value: float, accumulated: int
) -> None:
    task, batches, after = built(), batches_of(*[4] * 9), []
    batches[7][0][2, 1] = value
    keep = lightning.pytorch.callbacks.LambdaCallback(on_train_batch_end=lambda *_: after.append(learned(task)))
    spoilt = r"^E-NONFINITE: the loss is (nan|inf) at step \d \(epoch 1\), and head.0.running_mean, .* is not finite"
    with pytest.raises(InputError, match=spoilt):
        trainer(callbacks=[keep], accumulate_grad_batches=accumulated).fit(task, batches, batches_of(8))
    good = after[6] if accumulated == 1 else after[5]  # the window of batch 7 is never stepped on
    assert equal(learned(task), good) and not equal(good, after[0])


class Smooth(Toy):
    """Without batch norm and dropout, whose results would depend on how rows are batched."""

    def __init__(self, **training: Any) -> None:
        torch.manual_seed(0)
        model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 8), nn.Tanh()), "head": nn.Linear(8, 3)})
        super().__init__(model=model.double(), **training)

    def logits(self, x: Tensor) -> Tensor:
        return self.model["head"](self.model["body"](x))

    def step(self, batch: Batch) -> Step:
        logits = self.logits(batch[0])
        return Step(F.cross_entropy(logits, batch[1]), logits, batch[1])


class Weighted(Smooth):
    """Its loss is a mean over classes' weights, not over rows."""

    balance = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)

    def step(self, batch: Batch) -> Step:
        logits = self.logits(batch[0])
        loss = F.cross_entropy(logits, batch[1], weight=self.balance)
        return Step(loss, logits, batch[1], self.balance[batch[1]].sum())


class Infinite(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.value, None


class Diverging(Smooth):
    """Has a finite loss with a gradient that is not, or a loss that is not, in chosen batches, counted from 0."""

    def __init__(self, bad: Sequence[int], value: float = float("inf"), of: str = "gradient", **training: Any) -> None:
        super().__init__(**{"optimizer": partial(torch.optim.AdamW, lr=0.05), **training})
        self.bad, self.value, self.of, self.count = bad, value, of, itertools.count()

    def step(self, batch: Batch) -> Step:
        step = super().step(batch)
        if not self.training or next(self.count) not in self.bad:
            return step
        loss = step.loss * self.value if self.of == "loss" else Infinite.apply(step.loss, self.value)
        return step._replace(loss=loss)


def fit(task: AdapterTask, num_batches: int, **settings: Any) -> list[dict[str, Tensor]]:
    """What has been learned after each batch."""
    after: list[dict[str, Tensor]] = []
    keep = lightning.pytorch.callbacks.LambdaCallback(on_train_batch_end=lambda *_: after.append(learned(task)))
    batches = batches_of(*[4] * num_batches, dtype=torch.float64)
    task.configure_model()
    try:
        trainer(callbacks=[keep], **settings).fit(task, batches, batches_of(8, dtype=torch.float64))
    finally:
        task.after = after
    return after


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("of", ["gradient", "loss"])
@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_step_that_is_not_finite_is_not_applied_and_training_goes_on(
    value: float, of: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    after = fit(Diverging([4], value, of), 10, **settings)
    assert all(tensor.isfinite().all() for tensor in after[-1].values())
    assert not equal(after[5], after[-1]) and "E-NONFINITE" in caplog.text
    step = 5 if "accumulate_grad_batches" not in settings else 3
    assert caplog.text.count("E-NONFINITE") == 1 and f"at step {step} (epoch 1)" in caplog.text
    assert ("a gradient is not finite" if of == "gradient" else f"the loss is {value}") in caplog.text


def test_a_step_without_a_finite_gradient_changes_no_bit_where_the_optimizer_remembers_nothing() -> None:
    after = fit(Diverging([4], optimizer=partial(torch.optim.SGD, lr=0.05)), 6)
    assert equal(after[4], after[3]) and not equal(after[5], after[4])


@pytest.mark.parametrize("of", ["gradient", "loss"])
def test_three_such_steps_in_a_row_are_got_over_and_a_fourth_stops_the_run(of: str) -> None:
    fit(Diverging([1, 2, 3, 5, 6, 7], of=of), 9)
    task = Diverging([2, 3, 4, 5], of=of)
    with pytest.raises(
        InputError, match=r"^E-NONFINITE: .* at step 6 \(epoch 1\), after 3 steps in a row that were no"
    ):
        fit(task, 9)
    assert len(task.after) == 5 and all(tensor.isfinite().all() for tensor in learned(task).values())


def test_a_scaler_skips_steps_until_it_has_found_its_scale_and_nothing_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralight.training.task.is_scaled", lambda trainer: True)
    after = fit(Diverging(range(6)), 10)
    assert "E-NONFINITE" not in caplog.text and all(tensor.isfinite().all() for tensor in after[-1].values())


def test_a_scale_that_is_never_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loralight.training.task.is_scaled", lambda trainer: True)
    fit(Diverging(range(50)), 50)  # an epoch's end is no reason to give up
    with pytest.raises(InputError, match=r"^E-NONFINITE: no gradient of the first 100 steps was finite"):
        fit(Diverging(range(200)), 120)


class Deaf(Smooth):
    """Its body counts in its output so much, from a batch on."""

    def __init__(self, factor: float, until: int, **training: Any) -> None:
        super().__init__(**{"optimizer": partial(torch.optim.AdamW, lr=0.05), **training})
        self.factor, self.until, self.count = factor, until, itertools.count()

    def logits(self, x: Tensor) -> Tensor:
        factor = self.factor if self.training and next(self.count) < self.until else 1.0
        features = self.model["body"](x)
        return self.model["head"](features * factor + 1)


@pytest.mark.parametrize(("batches", "looked_at"), [(7, 7), (120, 100)])
def test_a_layer_whose_output_is_multiplied_by_zero_is_an_error_that_names_it(batches: int, looked_at: int) -> None:
    task = Deaf(0.0, until=1000, adapter=Lora(targets="body.0", rank=2))
    with pytest.raises(
        InputError, match=rf"^E-UNREACHED: the gradient of body\.0 was 0 in each of the first {looked_at} "
    ):
        fit(task, batches)
    assert len(task.after) in (batches, looked_at - 1)


@pytest.mark.parametrize(("factor", "until"), [(0.0, 5), (1e-6, 1000)])
def test_a_layer_that_counts_later_or_little_is_none(factor: float, until: int) -> None:
    fit(Deaf(factor, until=until, adapter=Lora(targets="body.0", rank=2)), 8)


class ZeroScale(Smooth):
    """Its body counts by a scale that begins at 0, as blocks of untrained residual networks do."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**{"optimizer": partial(torch.optim.AdamW, lr=0.05), **training})
        self.given[0]["body"].append(nn.LayerNorm(8).double())  # type: ignore[operator,index,union-attr]
        nn.init.zeros_(self.given[0]["body"][2].weight)  # type: ignore[arg-type,index,union-attr]

    def logits(self, x: Tensor) -> Tensor:
        return self.model["head"](1 + self.model["body"](x))


def test_layers_behind_a_scale_that_learns_from_zero_are_not_dead_after_one_step() -> None:
    fit(ZeroScale(adapter=FullFineTuning()), 1)


def test_layers_behind_a_frozen_scale_of_zero_are_dead_and_the_message_names_it() -> None:
    task = ZeroScale(adapter=Lora(targets="body.0", rank=2))
    with pytest.raises(InputError, match=r"^E-UNREACHED: .* body\.0 was 0 .*\. body\.2 is frozen and all 0, .*full$"):
        fit(task, 1)


def test_a_rate_of_zero_until_layers_begin_to_learn_is_no_dead_layer() -> None:
    task = Smooth(optimizer=partial(torch.optim.AdamW, lr=0.05), scheduler=partial(schedule, name="linear", warmup=0.9))
    fit(task, 10)


def moving_weight(task: AdapterTask) -> None:
    task.model["body"][0].weight.data[0, 0] += 1  # type: ignore[index,operator,union-attr]


def moving_buffer(task: AdapterTask) -> None:
    task.model.get_buffer("body.seen").add_(1)


@pytest.mark.parametrize(("move", "named"), [(moving_weight, r"body\.0\.weight"), (moving_buffer, r"body\.seen")])
def test_a_frozen_tensor_that_moves_is_an_error_that_names_it(move: Callable[[AdapterTask], None], named: str) -> None:
    class Moving(Smooth):
        def step(self, batch: Batch) -> Step:
            if self.training:
                move(self)
            return super().step(batch)

    task = Moving(optimizer=partial(torch.optim.SGD, lr=0.05))
    task.given[0]["body"].register_buffer("seen", torch.zeros((), dtype=torch.long))
    with pytest.raises(InputError, match=rf"^E-FROZEN-MOVED: {named}: frozen, but training has changed it"):
        fit(task, 2)


def test_a_buffer_that_no_state_dict_holds_may_move() -> None:
    class Caching(Smooth):
        def step(self, batch: Batch) -> Step:
            self.model.get_buffer("body.cache").add_(1)
            return super().step(batch)

    task = Caching(optimizer=partial(torch.optim.SGD, lr=0.05))
    task.given[0]["body"].register_buffer("cache", torch.zeros(3), persistent=False)
    fit(task, 2)


def test_a_task_that_would_make_the_optimizers_steps_itself_is_an_error() -> None:
    class Manual(Smooth):
        def __init__(self, **training: Any) -> None:
            super().__init__(**training)
            self.automatic_optimization = False

    with pytest.raises(TypeError, match="Manual sets automatic_optimization=False, but AdapterTask makes"):
        fit(Manual(optimizer=partial(torch.optim.SGD, lr=0.05)), 2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_with_which_a_head_learns_nothing_is_an_error(rate: float) -> None:
    with pytest.raises(InputError, match=r"^E-LR: task\.head_lr is "):
        Toy(head_lr=rate)
    if rate:
        with pytest.raises(InputError, match=r"^E-OPTIMIZER: task\.head_weight_decay is "):
            Toy(head_weight_decay=rate)


@pytest.mark.parametrize(
    ("adapter", "where"),
    [
        (Lora(targets="body.*", rank=9), r"rank is 9"),
        (Dora(targets="body.*", rank=100_000_000_000), r"rank is 100000000000"),
        (Lora(targets="body.*", rank_pattern={"body.0": 9}), r"rank_pattern\[body\.0\] is 9"),
        (AdaLora(targets="body.*", rank=8, initial_rank=9), r"initial_rank is 9"),
    ],
    ids=["lora", "dora", "pattern", "adalora"],
)
def test_a_rank_above_that_of_every_layer_is_refused_before_it_takes_memory(adapter: Any, where: str) -> None:
    with pytest.raises(InputError, match=rf"^E-RANK: adapter\.{where}, but no layer .* above 8, which body\.3 has"):
        built(adapter=adapter)


def test_a_layer_narrower_than_the_rank_is_let_be_beside_wider_ones() -> None:
    assert built(adapter=Lora(targets="body.*", rank=8)).model.body[0].rank == 8


def bare_parameter(task: AdapterTask) -> None:
    task.temperature = nn.Parameter(torch.ones(()))


def module_beside_the_model(task: AdapterTask) -> None:
    task.crf = nn.Linear(3, 3)


BESIDE = [(bare_parameter, "temperature"), (module_beside_the_model, "crf.weight, crf.bias")]


@pytest.mark.parametrize(("add", "names"), BESIDE)
def test_parameters_beside_the_model_are_refused_when_it_is_built(add: Callable[..., None], names: str) -> None:
    task = Toy(optimizer=partial(torch.optim.SGD, lr=0.05))
    add(task)
    with pytest.raises(
        InputError, match=rf"^E-OUTSIDE: Toy has parameters beside its model.*: {names}\. Put them into"
    ):
        task.configure_model()


@pytest.mark.parametrize("hook", ["on_fit_start", "step"])
@pytest.mark.parametrize(("add", "names"), BESIDE)
def test_parameters_that_come_to_be_later_are_refused_before_the_first_step(
    add: Callable[..., None], names: str, hook: str
) -> None:
    class Late(Smooth):
        def on_fit_start(self) -> None:
            if hook == "on_fit_start":
                add(self)

        def step(self, batch: Batch) -> Step:
            if hook == "step" and "crf" not in self._modules and "temperature" not in self._parameters:
                add(self)
            return super().step(batch)

    task = Late(optimizer=partial(torch.optim.SGD, lr=0.05))
    with pytest.raises(InputError, match=rf"^E-OUTSIDE: Late .*: {names}\."):
        fit(task, 3)
    assert not task.after


def test_what_learns_nothing_may_be_beside_the_model() -> None:
    class Distilled(Smooth):
        def __init__(self, **training: Any) -> None:
            super().__init__(**training)
            self.teacher = nn.Linear(4, 3).requires_grad_(False)
            self.criterion = nn.CrossEntropyLoss()
            self.extra = MetricCollection({"accuracy": MulticlassAccuracy(3)})

        def build_model(self) -> nn.Module:
            self.alias = self.given[0]["head"]
            return self.given[0]

    fit(Distilled(optimizer=partial(torch.optim.SGD, lr=0.05)), 2)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (lambda model: [nn.Linear(8, 3)], r"Toy\.head\(\) returned a Linear that is no part of the model"),
        (lambda model: [model.head, model.head], r"names head twice"),
        (lambda model: [model.head, model.head[2]], r"names head\.2 twice: by itself and in head\."),
        (lambda model: [model], r"returned the whole model"),
        (lambda model: model.head[2].weight, r"returned Parameter .*; return a list of modules"),
        (lambda model: [model.head[2].weight], r"returned \[Parameter .*; return a list of modules"),
        (lambda model: None, r"returned None; return a list"),
    ],
    ids=["outside", "twice", "nested", "whole", "parameter", "parameters", "none"],
)
def test_a_head_that_is_not_made_of_parts_of_the_model_is_an_error(
    head: Callable[[Any], Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "head", lambda self, model: head(model))
    with pytest.raises(InputError, match=rf"^E-HEAD: .*{says}"):
        built()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", [Smooth, Weighted])
@pytest.mark.parametrize("accumulated", [1, 2, 3, 5])
def test_accumulated_batches_compute_what_one_big_batch_does(
    kind: type[Smooth], accumulated: int, clip: float | None
) -> None:
    task = kind(optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9))
    task.configure_model()
    reference = copy.deepcopy(task)
    batches = batches_of(3, 1, 7, 2, 2, 5, 1, dtype=torch.float64)  # the last window is short for 2, 3 and 5
    trainer(accumulate_grad_batches=accumulated, gradient_clip_val=clip, max_epochs=2).fit(task, batches, batches)

    parameters = list(trainable(reference.model).values())
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    for start in [*range(0, len(batches), accumulated)] * 2:
        x, y = (torch.cat(parts) for parts in zip(*batches[start : start + accumulated], strict=True))
        optimizer.zero_grad()
        weight = reference.balance if isinstance(reference, Weighted) else None
        F.cross_entropy(reference.logits(x), y, weight=weight).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    for found, expected in zip(trainable(task.model).values(), parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class FromFolder(Toy):
    """Written as the documents show: its argument is called checkpoint."""

    def __init__(self, *, checkpoint: str, **training: Any) -> None:
        super().__init__(torch.load(checkpoint, weights_only=False), **training)


def test_a_task_whose_argument_is_called_checkpoint_loads_from_the_files_of_lightning_and_from_folders(
    tmp_path: Path,
) -> None:
    torch.save(Net(), tmp_path / "net.pth")
    arguments = {"checkpoint": str(tmp_path / "net.pth"), "adapter": Lora(targets="body.0", rank=2)}
    task = FromFolder(**arguments, optimizer=partial(torch.optim.SGD, lr=0.5))
    for name, plugins in {"file.ckpt": [], "folder": [FolderCheckpointIO()]}.items():
        run = trainer(plugins=plugins)
        run.fit(task, batches_of(4, 4), batches_of(4))
        run.save_checkpoint(tmp_path / name)
        loaded = FromFolder.load_from_checkpoint(tmp_path / name, **arguments)
        assert equal(loaded.trainable_tensors(), task.trainable_tensors())
        assert torch.equal(loaded.eval().model(torch.ones(2, 4)), task.eval().model(torch.ones(2, 4)))
    (tmp_path / "best").mkdir()
    (tmp_path / "folder").rename(tmp_path / "best" / "epoch=0.ckpt")
    best = FromFolder.load_from_checkpoint(tmp_path / "best", **arguments)
    assert equal(best.trainable_tensors(), task.trainable_tensors())
    with pytest.raises(InputError, match=r"^E-ADAPTER-KEYS: the checkpoint does not fit"):
        FromFolder.load_from_checkpoint(tmp_path / "best", **{**arguments, "adapter": Lora(targets="body.3")})
    (tmp_path / "other").write_text("no checkpoint")
    for path in ("other", "net.pth"):
        with pytest.raises(InputError, match=r"^E-CKPT-STATE: .* cannot be read as a checkpoint"):
            FromFolder.load_from_checkpoint(tmp_path / path, **arguments)
    with pytest.raises(InputError, match=r"^E-CKPT-HASH: "):
        FromFolder.load_from_checkpoint(tmp_path / "absent", **arguments)


def test_the_losses_of_an_epoch_are_means_over_rows() -> None:
    task = Smooth(optimizer=partial(torch.optim.SGD, lr=0.0))
    task.configure_model()
    batches, run = batches_of(3, 1, 7, dtype=torch.float64), trainer()
    run.fit(task, batches, batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = log_loss(y, task.logits(x).softmax(-1).detach(), labels=[0, 1, 2])
    assert float(run.callback_metrics["train/epoch_loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(run.callback_metrics["validation/loss"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_is_measured_under_its_own_name_over_all_its_rows(split: str) -> None:
    task = built().eval()
    batches, run = batches_of(5, 2, 1), trainer()
    measured = (run.validate if split == "validation" else run.test)(task, batches, verbose=False)[0]
    assert measured.keys() == {f"{split}/loss", f"{split}/accuracy"}
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = task.model(x).detach()
    assert measured[f"{split}/accuracy"] == pytest.approx(accuracy_score(y, logits.argmax(-1)))
    assert measured[f"{split}/loss"] == pytest.approx(
        log_loss(y, logits.double().softmax(-1), labels=[0, 1, 2]), rel=1e-5
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_loss_that_is_not_a_number_is_not_left_out_of_the_mean(split: str) -> None:
    batches, run = batches_of(5, 2, 1), trainer()
    batches[1][0][0, 0] = float("nan")
    measured = (run.validate if split == "validation" else run.test)(built(), batches, verbose=False)[0]
    assert measured[f"{split}/loss"] != measured[f"{split}/loss"]


def test_what_learns_loads_into_another_model_with_its_batch_norm() -> None:
    task, other = built(), built(model=Net())
    trainer().fit(task, batches_of(8, 8), batches_of(8))
    other.load_trainable(task.trainable_tensors(), "here")
    assert equal(other.trainable_tensors(), task.trainable_tensors())
    assert {"head.0.running_mean", "body.0.lora_B", "head.2.bias"} <= task.trainable_tensors().keys()
    assert not [name for name in task.trainable_tensors() if name.startswith("body.1.")]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop("body.0.lora_A"), r"there does not fit.*: missing body\.0\.lora_A$"),
        (lambda tensors: tensors.pop("head.0.running_var"), r"missing head\.0\.running_var$"),
        (lambda tensors: tensors.update({"body.0.weight": torch.zeros(8, 4)}), r"unknown body\.0\.weight$"),
        (
            lambda tensors: tensors.update({"head.2.bias": torch.zeros(4)}),
            r"head\.2\.bias has shape \(4,\) instead of \(3,\)$",
        ),
        (lambda tensors: tensors.clear(), r"missing .*; missing .*; missing .* and \d+ more$"),
    ],
)
def test_tensors_that_are_not_exactly_what_learns_are_refused_and_none_is_loaded(
    change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    task = built()
    before = weights(task)
    tensors = {name: torch.full_like(tensor, 7) for name, tensor in task.trainable_tensors().items()}
    change(tensors)
    with pytest.raises(InputError, match=f"^E-ADAPTER-KEYS: .*{message}"):
        task.load_trainable(tensors, "what lies there")
    assert equal(weights(task), before)


def test_the_model_is_built_once() -> None:
    task = built()
    before = weights(task)
    task.configure_model()
    assert equal(weights(task), before)


def test_a_task_without_an_optimizer_says_so_when_it_is_trained() -> None:
    with pytest.raises(TypeError, match="Toy was built without an optimizer"):
        trainer().fit(built(optimizer=None), batches_of(4), batches_of(4))


def test_a_schedule_ends_with_the_run() -> None:
    rates: list[float] = []
    task = built(scheduler=partial(schedule, name="linear"))
    keep = lightning.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda run, *_: rates.append(run.optimizers[0].param_groups[0]["lr"])
    )
    trainer(callbacks=[keep], max_epochs=2).fit(task, batches_of(4, 4), batches_of(4))
    assert rates == pytest.approx([0.0375, 0.025, 0.0125, 0.0])


def test_a_schedule_of_a_run_without_an_end_is_an_error() -> None:
    task = built(scheduler=partial(schedule, name="linear"))
    with pytest.raises(InputError, match=r"^E-STEPS: .*trainer\.max_epochs or trainer\.max_steps"):
        trainer(max_epochs=-1).fit(task, batches_of(4), batches_of(4))


@pytest.mark.parametrize("mode", [True, False])
def test_predictions_come_in_order_and_leave_the_mode_as_it_was(mode: bool) -> None:
    task = built().train(mode)
    answers = task.predict(list("abcde"), batch_size=2)
    assert [answer["of"] for answer in answers] == list("abcde")
    assert [answer["batch"] for answer in answers] == [2, 2, 2, 2, 1]
    assert task.training is mode and not task.model.body[1].training and task.predict([]) == []


def test_a_training_step_depends_on_seed_epoch_and_batch_alone() -> None:
    """Whatever happened to the random numbers before it: this makes a resumed run equal to one without a break."""
    finals = []
    for seed, consumed in itertools.product((0, 1), (0, 100)):
        torch.manual_seed(5)
        task = built(seed=seed)
        torch.rand(consumed)
        trainer().fit(task, batches_of(8, 8), batches_of(8))
        finals.append(weights(task))
    assert equal(finals[0], finals[1]) and equal(finals[2], finals[3])
    assert not equal(finals[0], finals[2])


def test_a_penalty_of_the_adapter_is_added_to_the_mean_loss_of_a_step_however_it_is_accumulated() -> None:
    class Decayed(Lora):
        def penalty(self, model: nn.Module) -> Tensor:
            return sum((p.square().sum() for p in trainable(model).values()), torch.tensor(0.0, dtype=torch.float64))

    def gradients(adapter: Lora, **settings: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        task = built(model=Net().double(), adapter=adapter, base_dropout=False)
        task.model.get_submodule("head.1").p = 0.0  # type: ignore[assignment]
        task.model.get_submodule("head.0").momentum = 0.0  # type: ignore[assignment]
        start = learned(task)
        trainer(**settings).fit(task, batches_of(6, 3, dtype=torch.float64), batches_of(4, dtype=torch.float64))
        return {name: (start[name] - p) / 0.05 for name, p in learned(task).items()} | {
            f"start {name}": p for name, p in start.items()
        }

    plain = Lora(targets="body.*", rank=2)
    without = gradients(plain, accumulate_grad_batches=2)
    found = gradients(Decayed(targets="body.*", rank=2), accumulate_grad_batches=2)
    for name in [name for name in found if not name.startswith("start ")]:
        expected = without[name] + 2 * found[f"start {name}"]
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def test_an_adapter_is_called_after_each_optimizer_step_with_its_gradients_and_before_a_checkpoint() -> None:
    calls: list[tuple[int, float]] = []

    class Watching(Lora):
        def after_step_(self, model: nn.Module, *, step: int, num_steps: float) -> None:
            assert all(parameter.grad is not None for parameter in trainable(model).values())
            calls.append((step, num_steps))

    seen_by_callbacks: list[int] = []
    watch = lightning.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: seen_by_callbacks.append(len(calls))
    )
    task = built(adapter=Watching(targets="body.*", rank=2))
    trainer(callbacks=[watch], accumulate_grad_batches=2, max_epochs=2).fit(task, batches_of(4, 4, 4), batches_of(4))
    assert calls == [(1, 4.0), (2, 4.0), (3, 4.0), (4, 4.0)]
    assert seen_by_callbacks == [0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(torch.optim.AdamW, weight_decay=0.1)])
def test_an_optimizer_that_is_no_partial_with_a_rate_is_refused_at_once(optimizer: Any) -> None:
    with pytest.raises(InputError, match=r"^E-OPTIMIZER: optimizer is .*AdamW.*; give one such as functools.partial"):
        Toy(adapter=Lora(targets="0"), optimizer=optimizer)


@pytest.mark.parametrize("adapter", [Lora, "lora", None])
def test_what_is_no_adapter_is_refused_at_once(adapter: Any) -> None:
    with pytest.raises(InputError, match=r"^E-ADAPTER: adapter is "):
        Toy(adapter=adapter)


class Numbers(Toy):
    """Tells the split of each step, and a number; its metrics want weights too."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(optimizer=partial(torch.optim.SGD, lr=0.05), **arguments)
        self.splits: list[str] = []

    def metrics(self) -> MetricCollection:
        accuracy = MulticlassAccuracy(3, average="micro")
        return MetricCollection({"accuracy": accuracy, "share": Share(), "all": Share(of_all=True), "texts": Texts()})

    def step(self, batch: Batch) -> Step:
        self.splits.append(self.split)
        found = super().step(batch)
        first = batch[0][:, 0]
        return found._replace(
            numbers={"first": first.mean()}, arguments={"counted": first > 0, "texts": ["a"] * len(first)}
        )


class Share(Metric):
    """The share of rows that are counted, or that are there: with the same states, which a first batch makes equal."""

    def __init__(self, *, of_all: bool = False) -> None:
        super().__init__()
        self.of_all = of_all
        for name in ("sum", "rows"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, counted: Tensor) -> None:
        assert len(predictions) == len(targets)
        self.sum, self.rows = self.sum + (len(targets) if self.of_all else counted.sum()), self.rows + len(targets)

    def compute(self) -> Tensor:
        return torch.as_tensor(self.sum / self.rows)


class Texts(Metric):
    """How many texts there are; it wants no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("number", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, texts: list[str]) -> None:
        assert all(isinstance(text, str) for text in texts)
        self.number = self.number + len(texts)

    def compute(self) -> Tensor:
        return torch.as_tensor(self.number)


def test_numbers_of_a_step_are_logged_over_all_items_and_metrics_get_what_they_declare() -> None:
    task, batches = Numbers(), batches_of(8, 3, 8)
    batches[0][0][:, 0].abs_()  # all rows of the first batch are counted
    run = trainer(max_epochs=1)
    run.fit(task, batches, batches)
    firsts = [rows[:, 0] for rows, _ in batches]
    assert float(run.callback_metrics["train/first"]) == pytest.approx(float(firsts[-1].mean()))
    for split, measure in (("validation", run.validate), ("test", run.test)):
        for _ in range(2):  # a second pass begins anew
            measured = measure(task, batches, verbose=False)[0]
            assert measured[f"{split}/first"] == pytest.approx(float(torch.cat(firsts).mean()))
            assert measured[f"{split}/share"] == pytest.approx(float((torch.cat(firsts) > 0).float().mean()))
            assert (measured[f"{split}/all"], measured[f"{split}/texts"]) == (1, 19)
    assert task.splits == ["train"] * 3 + ["validation"] * 9 + ["test"] * 6


def test_a_step_works_outside_of_a_trainer_and_knows_its_split_there() -> None:
    task = Numbers()
    task.configure_model()
    (batch,) = batches_of(4)
    task.train().step(batch)
    task.eval().step(batch)
    assert task.splits == ["train", "validation"]


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_a_number_cannot_take_the_name_of_what_is_logged_already(name: str) -> None:
    class Twice(Numbers):
        def step(self, batch: Batch) -> Step:
            return super().step(batch)._replace(numbers={name: 1.0})

    with pytest.raises(InputError, match=f"E-NUMBERS: the step of Twice names a number '{name}'"):
        trainer().fit(Twice(), batches_of(4), batches_of(4))


class Rollouts(Toy):
    """Draws once for each batch, and makes several steps with what was drawn."""

    updates_per_batch = 3

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"optimizer": partial(torch.optim.SGD, lr=0.05), **arguments})
        self.drawn: list[Tensor] = []
        self.noises: list[float] = []

    def step(self, batch: Batch) -> Step:
        if self.split == "train":
            self.noises.append(float(torch.rand(())))
            if self.update == 0:
                self.drawn.append(torch.randint(0, 3, batch[1].shape))
            batch = batch[0], self.drawn[-1]
        return super().step(batch)


def test_several_updates_are_made_with_one_rollout() -> None:
    torch.manual_seed(0)
    task = Rollouts(base_dropout=False)
    task.configure_model()
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin, batches = copy.deepcopy(task), batches_of(8, 8)
    run = trainer(num_sanity_val_steps=0)
    run.fit(task, batches, batches_of(8))
    assert len(task.drawn) == 2 and len(set(task.noises)) == 6, "each update has random numbers of its own"
    twin.train()
    optimizer = torch.optim.SGD(trainable(twin.model).values(), lr=0.05)
    for (rows, _), drawn in zip(batches, task.drawn, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(twin.model(rows), drawn).backward()
            optimizer.step()
    torch.testing.assert_close(learned(task), learned(twin), rtol=1e-5, atol=1e-6)
    assert run.global_step == 2, "a batch is a step of the run, which may be stopped and gone on with between batches"


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # ours resumes in mid-epoch
def test_a_run_with_several_updates_goes_on_between_batches(tmp_path: Path) -> None:
    def save(run: lightning.Trainer, *_: Any) -> None:
        if run.global_step == 1:
            run.save_checkpoint(tmp_path / "inside")

    ends = []
    for checkpoint in (None, tmp_path / "inside"):
        torch.manual_seed(0)
        task = Rollouts()
        callbacks = [lightning.pytorch.callbacks.LambdaCallback(on_train_batch_end=save)]
        trainer(callbacks=callbacks, plugins=[FolderCheckpointIO()]).fit(
            task, datamodule=RowsOfToy(batch_size=2, num_workers=0), ckpt_path=checkpoint
        )
        ends.append((learned(task), len(task.drawn)))
    assert equal(ends[0][0], ends[1][0]) and (ends[0][1], ends[1][1]) == (3, 2)


@pytest.mark.parametrize(
    ("number", "batches", "told"), [(0, 1, r"is 0; give at least 1$"), (3, 2, r"is 3, .*accumulate_grad_batches=1$")]
)
def test_updates_that_cannot_be_are_refused(number: int, batches: int, told: str) -> None:
    task = Rollouts()
    task.updates_per_batch = number
    with pytest.raises(InputError, match=rf"^E-UPDATES: Rollouts.updates_per_batch {told}"):
        trainer(accumulate_grad_batches=batches).fit(task, batches_of(4, 4), batches_of(4))
