"""The contract of adapter methods as tests: an author subclasses `AdapterContract` in one line. Needs pytest."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning
import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from loralight.adapters.base import Added, trainable
from loralight.adapters.disabled import disabled
from loralight.adapters.inject import inject, merge
from loralight.artifacts.from_python import load_adapter, save_adapter
from loralight.config.build import adapter_classes, build_task, make
from loralight.config.composition import compose, plain
from loralight.config.plugins import use_folder
from loralight.errors import InputError
from loralight.training.checkpoint import FolderCheckpointIO
from loralight.training.task import AdapterTask, Step

_LABELS, _WORDS = 3, 100


class AdapterContract:
    """Tests the promises of an adapter method on a small BERT with random weights; a subclass names the method.

    Promises for any model are also tested on convolutions, GPT-2's `Conv1D`, tied weights and a Llama. If PEFT has the
    method, its outputs are compared with PEFT's.

        class TestMyMethod(AdapterContract, adapter="my_method", plugin=Path("my_method")): ...

    Args:
        adapter: as on the command line: the name of a file in ``conf/adapter/``.
        plugin: the plugin's folder, which is tested even if a copy is installed; None for an installed plugin.
    """

    adapter: ClassVar[str] = ""
    plugin: ClassVar[Path | None] = None

    def __init_subclass__(cls, *, adapter: str = "", plugin: Path | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.adapter, cls.plugin = adapter or cls.adapter, plugin or cls.plugin

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> str:
        """The name of the method, after its plugin has been made available."""
        if cls.plugin is not None:
            use_folder(cls.plugin)
        return cls.adapter

    @pytest.fixture
    def task(self, method: str) -> AdapterTask:
        """A task with the method's adapter before training, in evaluation mode."""
        built = _build(method)
        built.eval()
        return built

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, method: str, tmp_path_factory: pytest.TempPathFactory) -> "Trained":
        """A task after five training steps, with its tensors from before and its checkpoint."""
        return _train(_build(method), tmp_path_factory.mktemp("trained"))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_at_step_0_the_adapted_model_computes_exactly_what_the_base_does(
        self, task: AdapterTask, dtype: torch.dtype
    ) -> None:
        base = task.build_model().to(dtype).eval()
        adapted = copy.deepcopy(base)
        inject(adapted, task.adapter, head=task.head(adapted))
        if not task.adapter.starts_at_base:
            pytest.skip(f"{type(task.adapter).__name__} says that it starts elsewhere")
        assert torch.equal(_logits(adapted), _logits(base))

    def test_the_base_s_tensors_stay_themselves_and_keep_their_keys(self, task: AdapterTask) -> None:
        model = task.build_model()
        base = dict(model.named_parameters())
        inject(model, task.adapter, head=task.head(model))
        assert {id(parameter) for parameter in base.values()} <= {id(parameter) for parameter in model.parameters()}
        if task.adapter.keeps_keys:
            assert base.keys() <= model.state_dict().keys()

    @pytest.mark.parametrize("kind", ["convolutions", "Conv1D", "tied weights", "Llama"])
    def test_on_layers_of_other_kinds_it_promises_the_same_or_refuses_them(self, method: str, kind: str) -> None:
        base, adapter = _OTHERS[kind]().eval().requires_grad_(False), _adapter(method, _TARGETS[kind])
        tied = len(list(base.parameters())) < len(list(base.named_parameters(remove_duplicate=False)))
        assert tied == (kind in ("Conv1D", "tied weights"))
        model, expected = copy.deepcopy(base), _output(base)
        try:
            inject(model, adapter)
        except InputError as error:
            pytest.skip(f"refused: {error}")
        assert torch.equal(_output(model), expected) or not adapter.starts_at_base
        assert base.state_dict().keys() <= model.state_dict().keys() or not adapter.keeps_keys
        _disturb(model)
        adapted = _output(model)
        assert not torch.equal(adapted, expected)
        with suppress(InputError), disabled(model):
            assert torch.equal(_output(model), expected)
        assert torch.equal(_output(model), adapted)
        if _can_merge(model):
            merge(model)
            assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
            assert model.state_dict().keys() == base.state_dict().keys()
            assert (_output(model) - adapted).norm() <= 1e-5 * adapted.norm()
            assert len(list(model.parameters())) == len(list(base.parameters())), "tied weights still are"

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of transformers
    @pytest.mark.filterwarnings("ignore:Unsupported layer type .* encountered:UserWarning")  # of PEFT, of any norm
    @pytest.mark.parametrize("kind", ["convolutions", "Conv1D", "tied weights", "Llama", "BERT"])
    def test_where_it_has_a_form_in_peft_peft_itself_computes_the_same_from_the_folder(
        self, method: str, kind: str, tmp_path: Path
    ) -> None:
        peft = pytest.importorskip("peft")
        torch.manual_seed(1)
        base, adapter = _OTHERS[kind]().eval().requires_grad_(False), _adapter(method, _TARGETS[kind])
        model = copy.deepcopy(base)
        try:
            inject(model, adapter, head=_head_of_bert(model) if kind == "BERT" else [])
        except InputError as error:
            pytest.skip(f"refused: {error}")
        _disturb(model)
        if adapter.peft_config(model) is None:
            pytest.skip("PEFT has no such method, or not for these layers")
        save_adapter(model, adapter, tmp_path / "adapter")
        theirs = _output(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval())
        ours = _output(model)
        assert (theirs[:, -ours.shape[1] :] - ours).norm() <= 1e-5 * ours.norm(), "but for the outputs of soft tokens"

    def test_what_requires_gradients_is_in_the_optimizer_once_and_in_the_checkpoint(self, trained: "Trained") -> None:
        learns = {name: p for name, p in trained.task.named_parameters() if p.requires_grad}
        optimized = [id(p) for group in trained.optimizer.param_groups for p in group["params"]]
        assert len(optimized) == len(set(optimized))
        assert set(optimized) == {id(parameter) for parameter in learns.values()}
        buffers = {f"model.{name}" for name, _ in trained.task.model.named_buffers()}
        saved = {f"model.{name}": tensor for name, tensor in trained.checkpoint["state_dict"].items()}
        assert saved.keys() - buffers == learns.keys()
        assert all(torch.equal(saved[name], parameter) for name, parameter in learns.items())
        assert {f"model.{name}" for name in trained.checkpoint["optimizer_states"][0]["state"]} == learns.keys()

    def test_training_moves_all_that_learns_and_not_one_bit_of_what_is_frozen(self, trained: "Trained") -> None:
        after = _everything(trained.task.model)
        assert after.keys() == trained.before.keys()
        moved = {name for name, tensor in after.items() if not torch.equal(tensor, trained.before[name])}
        own = dict(trained.task.model.named_buffers()).keys() - dict(trained.task.build_model().named_buffers()).keys()
        assert moved - own == set(trainable(trained.task.model)), "a method's own buffers may move, the base's may not"

    def test_a_checkpoint_brings_an_untrained_model_to_where_the_trained_one_is(self, trained: "Trained") -> None:
        other = copy.deepcopy(trained.task)
        _disturb(other.model)
        other.load_trainable(trained.checkpoint["state_dict"], "the checkpoint")
        assert torch.equal(_logits(other.eval().model), _logits(trained.task.eval().model))

    @pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
    def test_with_the_adapter_disabled_the_base_computes_bit_for_bit_or_it_is_refused(
        self, task: AdapterTask, mode: bool
    ) -> None:
        base = task.build_model()
        adapted = copy.deepcopy(base)
        inject(adapted, task.adapter, head=task.head(adapted))
        _disturb(adapted)
        for ours, theirs in zip(task.head(base), task.head(adapted), strict=True):
            ours.load_state_dict(theirs.state_dict())  # a trained head does not belong to the adapter
        base.train(mode), adapted.train(mode)
        before = _drawn_alike(adapted)
        try:
            with disabled(adapted):
                assert torch.equal(_drawn_alike(adapted), _drawn_alike(base))
        except InputError as error:
            assert str(error).startswith(f"E-DISABLED: {type(task.adapter).__name__} trains ")
        assert torch.equal(_drawn_alike(adapted), before)

    def test_merging_gives_a_plain_model_with_the_old_keys_and_equal_outputs_or_is_refused(
        self, task: AdapterTask
    ) -> None:
        plain_model = task.build_model()
        _disturb(task.model)
        expected = _logits(task.model)
        if not _can_merge(task.model):
            with pytest.raises(InputError, match=r"^E-MERGE: "):
                merge(task.model)
            assert torch.equal(_logits(task.model), expected), "a model that cannot be merged is left as it is"
            return
        merge(task.model)
        assert task.model.state_dict().keys() == plain_model.state_dict().keys()
        assert [type(module) for module in task.model.modules()] == [type(module) for module in plain_model.modules()]
        assert (_logits(task.model) - expected).norm() <= 2e-6 * expected.norm()
        plain_model.load_state_dict(task.model.state_dict())
        assert torch.equal(_logits(plain_model.eval()), _logits(task.model))

    def test_the_form_that_a_trained_adapter_is_kept_in_computes_the_same_and_is_what_its_adapter_builds(
        self, trained: "Trained"
    ) -> None:
        task = copy.deepcopy(trained.task).eval()
        before = _logits(task.model)
        kept = task.adapter.finish_(task.model)
        found = _logits(task.model)
        assert (found - before).norm() <= 2e-6 * before.norm()
        rebuilt = task.build_model().eval()
        inject(rebuilt, kept, head=task.head(rebuilt))
        rebuilt.load_state_dict(task.model.state_dict())
        assert trainable(rebuilt).keys() == trainable(task.model).keys()
        assert torch.equal(_logits(rebuilt), found)

    def test_a_saved_adapter_comes_back_on_another_base_and_training_may_go_on(
        self, task: AdapterTask, tmp_path: Path
    ) -> None:
        model = task.build_model().eval()
        base, kept = copy.deepcopy(model), tmp_path / "adapter"
        inject(model, task.adapter, head=task.head(model))
        _disturb(model)
        before = _everything(model)
        save_adapter(model, task.adapter, kept)
        after = _everything(model)
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        load_adapter(base, kept)
        assert (_logits(base) - _logits(model)).norm() <= 2e-6 * _logits(model).norm()

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
    def test_an_adapted_model_can_be_copied(self, task: AdapterTask, copied: Callable[[Any], Any]) -> None:
        _disturb(task.model)
        before = _logits(task.model)
        twin = copied(task.model)
        assert copied(task.adapter) == task.adapter
        assert trainable(twin).keys() == trainable(task.model).keys()
        assert torch.equal(_logits(twin), before)
        _disturb(twin)
        if _can_merge(twin):
            merge(twin)
        assert torch.equal(_logits(task.model), before), "the copy shares nothing with the original"

    def test_the_file_offers_every_argument_of_the_constructor_with_the_same_default(self, method: str) -> None:
        offered = OmegaConf.to_container(compose("train", [f"adapter={method}"]).adapter, resolve=False)
        assert isinstance(offered, dict)
        del offered["_target_"]
        fields = {field.name: field for field in dataclasses.fields(adapter_classes()[method])}
        assert offered.keys() == fields.keys()
        for name, value in offered.items():
            field = fields[str(name)]
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if default is not dataclasses.MISSING and not (isinstance(value, str) and "${" in value):
                assert (tuple(value) if isinstance(value, list) else value) == default, name


def _decoder() -> nn.Module:
    """GPT-2: `Conv1D` layers, and an output layer that shares its weight with the embeddings."""
    ends: Any = {"bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=_WORDS, **ends))


def _llama() -> nn.Module:
    """Linear layers without biases, RMSNorm, and fewer heads for keys than for queries."""
    ends: Any = {"bos_token_id": None, "eos_token_id": None}
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=_WORDS, **sizes, **heads, **ends))


_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: _bert(),
    "convolutions": lambda: timm.create_model("test_resnet", zero_init_last=False),
    "Conv1D": _decoder,
    "tied weights": _decoder,
    "Llama": _llama,
}
_TARGETS = {"BERT": "all", "convolutions": "all", "Conv1D": "all-linear", "tied weights": "all", "Llama": "all-linear"}


def _adapter(method: str, targets: str) -> Any:
    """The method with its defaults, and with these targets if it takes any."""
    settings = dict(plain(compose("train", [f"adapter={method}"]).adapter))
    return make({**settings, "targets": targets} if "targets" in settings else settings)


@torch.no_grad()
def _output(model: nn.Module) -> Tensor:
    if any(isinstance(module, PreTrainedModel) for module in model.modules()):  # inside PEFT's own
        return torch.as_tensor(model(input_ids=batch_of(5)["input_ids"]).logits)
    return torch.as_tensor(model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)))


def _bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=_WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    config.num_labels = _LABELS
    return BertForSequenceClassification(config)


def _head_of_bert(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, BertForSequenceClassification) and model.bert.pooler is not None
    return [model.bert.pooler, model.classifier]


class TinyBert(AdapterTask):
    """A BERT of two layers with random weights; nothing has to be loaded.

    Batch: input_ids, attention_mask (batch, tokens); labels (batch,).
    """

    def build_model(self) -> BertForSequenceClassification:
        return _bert()

    def head(self, model: nn.Module) -> list[nn.Module]:
        return _head_of_bert(model)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(_LABELS, average="micro")})

    def step(self, batch: dict[str, Tensor]) -> Step:
        logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
        return Step(F.cross_entropy(logits, batch["labels"]), logits, batch["labels"])

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The label of each list of word numbers, all of one length."""
        logits = self.model(torch.tensor(inputs, device=self.device)).logits
        return [{"label": label} for label in logits.argmax(-1).tolist()]


class Trained(NamedTuple):
    """See `AdapterContract.trained`."""

    task: AdapterTask
    before: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    checkpoint: dict[str, Any]


class _Batches(list[dict[str, Tensor]]):
    """A loader; Lightning would take a plain list for several loaders."""


def _build(method: str) -> AdapterTask:
    # unpadding changes the last bits of outputs, which some tests compare
    config = compose("train", [f"adapter={method}", "~acceleration.unpadding", "~acceleration.first_tokens"])
    settings = {part: plain(config[part]) for part in ("adapter", "optimizer", "scheduler", "acceleration")}
    return build_task({**settings, "task": {"_target_": f"{__name__}.TinyBert"}, "seed": 0}, {})


def _train(task: AdapterTask, folder: Path) -> Trained:
    before = _everything(task.model)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        plugins=[FolderCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = _Batches(batch_of(size) for size in range(4, 9))
    trainer.fit(task, batches, batches)
    trainer.save_checkpoint(folder / "checkpoint")
    checkpoint = FolderCheckpointIO().load_checkpoint(folder / "checkpoint")
    return Trained(task, before, trainer.optimizers[0], checkpoint)


def batch_of(size: int) -> dict[str, Tensor]:
    """A batch of ``size`` rows of 4 to 12 tokens, the same at each call."""
    random = torch.Generator().manual_seed(size)
    ids = torch.randint(1, _WORDS, (size, 12), generator=random)
    mask = (torch.arange(12) < torch.randint(4, 13, (size, 1), generator=random)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, _LABELS, (size,), generator=random)}


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    batch = batch_of(5)
    logits: Tensor = model(batch["input_ids"], batch["attention_mask"]).logits
    return logits


def _drawn_alike(model: nn.Module) -> Tensor:
    """Logits with the same random numbers for dropout at each call."""
    torch.manual_seed(0)
    return _logits(model)


def _everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that a state dict leaves out."""
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Move the trainable parameters away from their start, as far as training could."""
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)


def _can_merge(model: nn.Module) -> bool:
    return not any(isinstance(module, Added) for module in model.modules())
