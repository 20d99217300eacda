"""`loralight explain`: what a setting, a choice or a code means."""

from collections.abc import Callable

import pytest

Told = Callable[..., str]


@pytest.fixture
def told(in_process: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    monkeypatch.setenv("COLUMNS", "200")

    def tell(*words: str, code: int = 0) -> str:
        assert in_process("explain", *words) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return tell


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optimizer.lr"], ["learning rate", "default   ${adapter.lr}, which is 0.001", "taken by  torch.optim.AdamW"]),
        (["adapter.rank="], ["rows of A and columns of B", "values    an integer", "also in   adapter=adalora (8)"]),
        (["task.head_start"], ["values    random or probe", "conf/train.yaml"]),
        (["data.columns", "task=ner"], ["words and tags", "loralight.tasks.ner.NerData"]),
        (["data.columns.pair"], ["names of the columns"]),
        (["adapter.initial_rank"], ["rank of each layer at first", "(adapter=adalora)"]),
        (["fold_batch_norm"], ["BatchNorm layers into the convolutions", "(loralight merge)"]),
        (["trainer.max_time"], ["(with a plus: +trainer.max_time=)", "Stop training after"]),
        (["adapter=dora"], ["adapter=dora (chosen): DoRA", "adapter=lora: LoRA", "adapter.lr_rank=8"]),
        (["acceleration.frozen_products"], ["acceleration.frozen_products.prepack=false"]),
        (["E-PICKLE"], ["A model or an adapter is refused (docs/debugging.md)", "it is raised where", "its messages"]),
        (["e-beta"], ["give a number between 0 and 1"]),
        (["--help"], ["loralight explain SETTING|E-CODE"]),
        ([], ["loralight explain SETTING|E-CODE"]),
    ],
    ids=str,
)
def test_it_tells_meaning_default_values_and_place(words: list[str], parts: list[str], told: Told) -> None:
    printed = told(*words)
    assert [part for part in parts if part not in printed] == [], printed


@pytest.mark.parametrize(
    ("word", "near"),
    [("E-COLUM", "'E-COLUMN'"), ("adapter.rnk", "'adapter.rank'"), ("lr", "'adapter.lr' or 'optimizer.lr'")],
)
def test_what_is_misspelt_leads_to_the_closest(word: str, near: str, told: Told) -> None:
    assert f"Did you mean {near}" in told(word, code=2)
