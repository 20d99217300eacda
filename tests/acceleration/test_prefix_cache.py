"""Frozen blocks are computed once for each row, and training becomes what it is without that."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loralight.acceleration.prefix_cache import Prefix

InProcess = Callable[..., int]
Refused = Callable[..., str]
TOP = ["acceleration=prefix_cache", "adapter.targets=['*.layer.1.*']", "task.base_dropout=false"]


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[Prefix]:
    """Those that a command has made."""
    made: list[Prefix] = []
    begin = Prefix.__init__

    def kept(self: Prefix, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Prefix, "__init__", kept)
    return made


class Doubled(nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x * factor


def test_a_batch_is_skipped_when_all_its_rows_are_known(tmp_path: Path) -> None:
    first, second = Doubled(), Doubled()
    prefix = Prefix([first, second], tmp_path / "rows.sqlite")
    x, one = torch.randn(4, 3, 2), torch.ones(1)

    def run(rows: Tensor, factor: Tensor = one) -> Tensor:
        result: Tensor = second(first(rows, factor), factor)
        return result

    assert run(x[:2]).equal(4 * x[:2])
    assert run(x[[1, 0]]).equal(4 * x[[1, 0]]) and second.calls == 1, "known in any order"
    assert run(x[1:3]).equal(4 * x[1:3]) and second.calls == 2, "one row is new"
    assert run(x[:3]).equal(4 * x[:3]) and second.calls == 2
    assert run(x[:3], 4 * one).equal(64 * x[:3]) and second.calls == 3, "another argument is another row"
    assert prefix.num_skipped == 2
    prefix.remove_()
    assert run(x[:2]).equal(4 * x[:2]) and second.calls == first.calls == 4
    assert not {"forward"} & vars(first).keys()


def test_what_a_process_has_computed_is_there_for_the_next_one(tmp_path: Path) -> None:
    x, one = torch.randn(3, 5), torch.ones(1)
    for calls in (1, 1):
        block = Doubled()
        prefix = Prefix([block], tmp_path / "rows.sqlite")
        block(x[:1], one)  # what it returns is not known before it has been asked
        assert block(x[:1], one).equal(2 * x[:1]) and block.calls == calls
        prefix.remove_()


def test_a_copy_of_a_model_that_is_trained_computes_for_itself(tmp_path: Path) -> None:
    model = nn.Sequential(Doubled())
    prefix = Prefix(list(model), tmp_path / "rows.sqlite")
    x, one = torch.randn(3, 5), torch.ones(1)
    model[0](x, one)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = twin[0].calls
        assert twin[0](x, one).equal(2 * x) and twin[0].calls == before + 1
    assert model[0](x, one).equal(2 * x) and prefix.num_skipped == 1
    prefix.remove_()


@pytest.mark.parametrize("unpadded", [True, False])
def test_training_becomes_what_it_is_without_the_cache(
    unpadded: bool,
    in_process: InProcess,
    tiny_run: list[str],
    prefixes: list[Prefix],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["train", *tiny_run, *TOP, "trainer.max_epochs=3", *([] if unpadded else ["~acceleration.unpadding"])]
    line.remove("trainer.max_epochs=1")
    assert in_process(*line, "hydra.run.dir=cached") == 0
    told = capsys.readouterr().out
    assert "prefix_cache" in told and "off: prefix_cache" not in told, "the report before training says that it is on"
    assert in_process(*line, "acceleration=default", "hydra.run.dir=plain") == 0
    (prefix,) = prefixes
    # 5 batches and 3 of validation in each of three epochs, of which the first alone has new rows
    assert prefix.num_skipped >= 10
    cached, plain = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("cached", "plain"))
    assert cached.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=2e-6)
    assert not list((tmp_path / "cached").glob("prefix*")), "the file is gone at the end"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["adapter.targets=all-linear"], "the first trainable block is the model's first"),
        (["adapter=bitfit", "~adapter.targets"], "the first trainable block is the model's first"),
        (["task.base_dropout=true"], "set task.base_dropout=false"),
    ],
)
def test_what_stands_in_the_way_is_told(overrides: list[str], says: str, refused: Refused, tiny_run: list[str]) -> None:
    given = {o.partition("=")[0]: o for o in [*tiny_run, *TOP, *overrides] if not o.startswith("~")}
    for gone in (o[1:] for o in overrides if o.startswith("~")):
        del given[gone]
    assert re.search(f"^loralight: E-PREFIX: .*{says}", refused("train", *given.values()), re.MULTILINE)
