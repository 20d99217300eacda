"""The contract of tasks as tests: a plugin's author subclasses `TaskContract` in one line. Needs pytest.

An adapter method's promises are in `AdapterContract`.
"""

import copy
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from loralight.adapters import merge
from loralight.adapters.base import trainable
from loralight.artifacts.certificate import difference, outputs
from loralight.artifacts.export import save_adapter
from loralight.artifacts.loading import load
from loralight.config.build import (
    build_data,
    build_task,
    build_trainer,
    check_config,
    monitored,
    recipe,
    task_node,
)
from loralight.config.composition import compose, plain
from loralight.config.plugins import use_folder
from loralight.data import TaskData
from loralight.reports.answers import answer_of
from loralight.testing.adapters import AdapterContract
from loralight.training.answers import own_answers
from loralight.training.checkpoint import read_checkpoint
from loralight.training.step import measure_
from loralight.training.task import AdapterTask, Step

_ROWS = 6  # of a split that are tested


class TaskContract:
    """Tests the promises of a task; a subclass gives overrides of ``loralight train`` for a small run of the task.

        class TestMyTask(TaskContract, overrides=["task=my_task"], plugin=Path("my_task")): ...

    The data needs at least eight training rows. Every promise is a test on the CPU, with the model that the overrides
    name; a small model makes the tests fast. If a task cannot keep a promise by its nature, it declares that by an
    attribute of the class, such as `rows_depend`; a declaration that is not true fails too.

    Args:
        overrides: as on the command line.
        plugin: the plugin's folder, which is tested even if a copy is installed; None for an installed plugin.
    """

    overrides: ClassVar[Sequence[str]] = ()
    plugin: ClassVar[Path | None] = None

    rows_depend: ClassVar[bool] = False
    """Whether a row's loss depends on the other rows of its batch, for example as its negatives. It may not depend on
    their order."""

    step_draws: ClassVar[bool] = False
    """Whether a step draws random numbers also outside of training, for example to sample answers."""

    loss_is_objective: ClassVar[bool] = True
    """Whether a lower loss is better; the value of a policy-gradient loss does not show that."""

    def __init_subclass__(cls, *, overrides: Sequence[str] = (), plugin: Path | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.overrides, cls.plugin = [*cls.overrides, *overrides], plugin or cls.plugin

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls) -> dict[str, Any]:
        """The composed settings, as plain values."""
        if cls.plugin is not None:
            use_folder(cls.plugin)
        settings: dict[str, Any] = plain(compose("train", [*cls.overrides, "trainer=cpu", "~callbacks", "~logger"]))
        return settings

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, config: dict[str, Any]) -> TaskData:
        """The data module, with its splits read."""
        return build_data(config)

    @pytest.fixture
    def task(self, config: dict[str, Any], data: TaskData) -> AdapterTask:
        """The task before training, in evaluation mode."""
        built = build_task(config, data.model_arguments())
        built.eval()
        return built

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> "Trained":
        """A task after a few steps of training."""
        return Trained(config, tmp_path_factory.mktemp("trained"))

    def inputs(self, data: TaskData) -> list[Any]:
        """Inputs for predictions; a subclass overrides this if the data has no examples."""
        inputs = [given for given, _ in data.examples(3)]
        assert inputs, "override TaskData.examples, or inputs in this class"
        return inputs

    def test_its_settings_fit_what_they_configure(self, config: dict[str, Any]) -> None:
        check_config(config)

    def test_its_data_has_rows_and_reaches_worker_processes(self, data: TaskData) -> None:
        assert {"train", "validation"} <= data.splits.keys()
        assert all(len(data.lengths(split)) == len(rows) > 0 for split, rows in data.splits.items())
        twin = pickle.loads(pickle.dumps(data))
        _assert_same(_rows_of(twin, "validation"), _rows_of(data, "validation"))
        assert all(isinstance(line, str) for line in data.report())

    def test_what_the_data_tells_the_task_is_plain(self, data: TaskData) -> None:
        told = data.model_arguments()
        assert json.loads(json.dumps(told)) == told, "it is saved with the adapter, as JSON"

    def test_the_metric_that_chooses_the_best_checkpoint_is_measured(
        self, config: dict[str, Any], trained: "Trained"
    ) -> None:
        measured = trained.trainer.validate(trained.task, datamodule=trained.data, verbose=False)[0]
        assert monitored(config, trained.data) in measured
        assert config["monitor"]["mode"] in ("min", "max")
        baseline = {f"validation/{name}" for name in trained.data.baseline("validation")}
        assert baseline <= measured.keys(), "a baseline is named after the metric it is read beside"

    def test_at_step_0_the_adapted_model_computes_what_the_pretrained_one_does(
        self, data: TaskData, task: AdapterTask
    ) -> None:
        batch = _batch(data, "validation")
        base = copy.deepcopy(task.model)
        merge(base)  # nothing is added yet, so this only takes the adapter away
        adapted, task.model = _step(task, batch), base
        plain_step = _step(task, batch)
        assert torch.equal(adapted.loss, plain_step.loss)
        _assert_same(adapted.predictions, plain_step.predictions)

    def test_what_learns_is_what_is_optimized_and_saved(self, trained: "Trained") -> None:
        learns = trainable(trained.task.model)
        optimized = [id(p) for group in trained.trainer.optimizers[0].param_groups for p in group["params"]]
        assert len(optimized) == len(learns) and set(optimized) == {id(p) for p in learns.values()}
        assert learns.keys() <= trained.task.trainable_tensors().keys()

    def test_what_starts_at_random_learns(self, task: AdapterTask) -> None:
        """Also parameters that `fresh` does not know."""
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(dict(task.build_model().named_parameters()))
        random = {name for name, parameter in models[0].items() if not torch.equal(parameter, models[1][name])}
        stuck = random - trainable(task.model).keys()
        assert not stuck, f"{sorted(stuck)} start at random and are frozen: have head() return their modules"

    def test_training_changes_all_that_learns_and_nothing_that_is_frozen(self, trained: "Trained") -> None:
        after = trained.task.model.state_dict()
        moved = {name for name, tensor in after.items() if not torch.equal(tensor, trained.before[name])}
        assert moved <= trained.task.trainable_tensors().keys()
        assert trainable(trained.task.model).keys() <= moved

    def test_training_lowers_the_loss_on_what_it_is_trained_on(self, data: TaskData, task: AdapterTask) -> None:
        if not self.loss_is_objective:
            pytest.skip("declared: the loss is no objective")
        batch = _batch(data, "train")
        optimizer = torch.optim.Adam(trainable(task.model).values(), lr=task.adapter.lr)
        first = float(_step(task, batch).loss)
        for _ in range(8):
            optimizer.zero_grad()
            task.step(batch).loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert float(_step(task, batch).loss) < first

    def test_a_step_draws_random_numbers_only_if_it_is_declared(self, data: TaskData, task: AdapterTask) -> None:
        batch = _batch(data, "validation")
        losses = {float(_step(task, batch, seed=seed).loss) for seed in range(5)}
        assert (len(losses) > 1) == self.step_draws, f"step_draws is {self.step_draws}; five steps gave {losses}"

    def test_a_batch_has_the_loss_of_its_rows_one_by_one(self, data: TaskData, task: AdapterTask) -> None:
        """So padding changes nothing, and several processes or accumulated batches give the result of one batch."""
        if self.step_draws:
            pytest.skip("declared: a step draws, other numbers for a row alone")
        rows = _rows_of(data, "validation")
        alone = [_step(task, data.collate([row])) for row in rows]
        weights = torch.stack([_weight(step) for step in alone])
        together = _step(task, data.collate(rows))
        losses = torch.stack([step.loss for step in alone])
        torch.testing.assert_close(_weight(together), weights.sum(), rtol=1e-5, atol=1e-6)
        mean = (losses * weights).sum() / weights.sum()
        if self.rows_depend:
            assert not torch.isclose(together.loss, mean, rtol=1e-4), "they do not depend: leave rows_depend out"
            mean = _step(task, data.collate(rows[::-1])).loss
        torch.testing.assert_close(together.loss, mean, rtol=1e-4, atol=1e-5)

    def test_metrics_do_not_depend_on_the_batches(self, data: TaskData, task: AdapterTask) -> None:
        if self.rows_depend or self.step_draws:
            pytest.skip("declared: what a step computes of a row depends on the others, or on chance")
        rows = _rows_of(data, "validation")
        together, alone = task.metrics(), task.metrics()
        measure_(together, _step(task, data.collate(rows)))
        for row in rows:
            measure_(alone, _step(task, data.collate([row])))
        _assert_close(alone.compute(), together.compute())

    def test_predictions_are_plain_data_and_do_not_depend_on_the_batch(self, data: TaskData, task: AdapterTask) -> None:
        inputs = self.inputs(data)
        answers = task.predict(inputs)
        assert len(answers) == len(inputs)
        assert all(json.loads(json.dumps(answer)) == answer for answer in answers), "a line of JSON each"
        _assert_close([task.predict([given])[0] for given in inputs], answers)

    def test_kept_answers_are_plain_data_and_one_for_each_row(self, data: TaskData, task: AdapterTask) -> None:
        batch, count = _batch(data, "validation"), len(_rows_of(data, "validation"))
        shown = [data.shown("validation", row) for row in range(count)]
        step = _step(task, batch)
        outputs = {"predictions": step.predictions, "targets": step.targets, "arguments": step.arguments}
        found = own_answers(task, batch, outputs)
        for kept in () if found is None else (found.given, found.right):
            lines = [{"given": one, "right": one, "input": text} for one, text in zip(kept, shown, strict=True)]
            assert json.loads(json.dumps(lines)) == lines
            assert found is not None
            assert all(answer_of(line, found.kind, frozenset(found.labels)).score == 1 for line in lines)
        assert all(isinstance(text, str | list | None) for text in shown)

    def test_a_saved_adapter_predicts_what_the_trained_one_does(self, trained: "Trained", tmp_path: Path) -> None:
        task, data = trained.task, trained.data
        saved = tmp_path / "adapter"
        save_adapter(task, saved, recipe=recipe(trained.config, data.model_arguments(), task), metrics={})
        loaded = load(saved, device="cpu")
        task.eval()
        batch = _batch(data, "validation")
        assert torch.equal(_step(loaded, batch).loss, _step(task, batch).loss)
        inputs = self.inputs(data)
        assert loaded.predict(inputs) == task.predict(inputs)

    @pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # ours resumes in mid-epoch
    def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
        self, config: dict[str, Any], trained: "Trained", tmp_path: Path
    ) -> None:
        resumed = Trained(config, tmp_path, go_on_from=trained.checkpoint)
        uninterrupted = trained.task.trainable_tensors()
        for name, tensor in resumed.task.trainable_tensors().items():
            assert torch.equal(tensor, uninterrupted[name]), name

    def test_a_checkpoint_loads_into_a_task_of_the_same_arguments(self, trained: "Trained") -> None:
        arguments = {key: value for key, value in task_node(trained.config).items() if key != "_target_"}
        arguments |= {**trained.data.model_arguments(), "adapter": trained.task.adapter}
        loaded = type(trained.task).load_from_checkpoint(trained.checkpoint, **arguments)
        _assert_same(loaded.trainable_tensors(), read_checkpoint(trained.checkpoint)["state_dict"])

    def test_a_merged_model_computes_what_the_adapted_one_does(self, trained: "Trained") -> None:
        task, data = copy.deepcopy(trained.task).eval(), trained.data
        task.accelerations.detach_(task.model)  # the two models themselves are compared
        rows = range(min(_ROWS, len(data.splits["validation"])))
        adapted = outputs(task, data, rows)
        merge(task.model)
        assert difference(adapted, outputs(task, data, rows))["relative_error"] < 1e-4

    def test_worker_processes_read_the_batches_that_one_process_does(self, config: dict[str, Any]) -> None:
        wanted, found = (_two_epochs({**config, "data": {**config["data"], "num_workers": n}}) for n in (0, 2))
        _assert_same(found, wanted)


class Trained:
    """A task trained for two epochs of two batches, its tensors from before, and a checkpoint after the first step.

    Args:
        config: the settings.
        folder: the folder to write to.
        go_on_from: another run's checkpoint to resume from.
    """

    def __init__(self, config: dict[str, Any], folder: Path, *, go_on_from: Path | None = None) -> None:
        self.config, self.checkpoint = config, folder / "inside"
        self.data = build_data(config)
        self.task = build_task(config, self.data.model_arguments())
        self.before = {name: tensor.clone() for name, tensor in self.task.model.state_dict().items()}
        trainer = {**config["trainer"], "max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
        settings = {**config, "trainer": {**trainer, "num_sanity_val_steps": 0, "enable_checkpointing": False}}
        self.trainer = build_trainer(settings, folder, [LambdaCallback(on_train_batch_end=self._save)])
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=go_on_from)

    def _save(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.checkpoint)


def _rows_of(data: TaskData, split: str) -> list[Any]:
    rows = data.splits[split]
    return [rows[number] for number in range(min(_ROWS, len(rows)))]


def _batch(data: TaskData, split: str) -> Any:
    return data.collate(_rows_of(data, split))


@torch.no_grad()
def _step(task: AdapterTask, batch: Any, *, seed: int = 0) -> Step:
    torch.manual_seed(seed)  # it draws the same numbers each time
    return task.step(batch)


def _weight(step: Step) -> Tensor:
    weight = step.targets.shape[0] if step.weight is None else step.weight
    return torch.as_tensor(weight, dtype=torch.float32)


def _two_epochs(config: dict[str, Any]) -> list[Any]:
    """The first two training batches of two epochs."""
    loader = build_data(config).train_dataloader()
    batches: list[Any] = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches += [batch for batch, _ in zip(loader, range(2), strict=False)]
    return batches


def _pairs(found: Any, wanted: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of two nested structures, side by side."""
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        for key in wanted:
            yield from _pairs(found[key], wanted[key])
    elif isinstance(wanted, Sequence) and not isinstance(wanted, str):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            yield from _pairs(one, other)
    else:
        yield found, wanted


def _assert_same(found: Any, wanted: Any) -> None:
    for one, other in _pairs(found, wanted):
        same = torch.equal(one, other) if isinstance(other, Tensor) else one == other
        assert same, f"{one} is not {other}"


def _assert_close(found: Any, wanted: Any) -> None:
    """Assert equality up to rounding of numbers."""
    for one, other in _pairs(found, wanted):
        if isinstance(other, float | Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        else:
            assert one == other


__all__ = ["AdapterContract", "TaskContract"]
