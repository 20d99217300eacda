"""`loralight compare`: what it says of finished runs, what it refuses, and that its page is safe to open."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import find_runs, read_run

InProcess = Callable[..., int]
Refused = Callable[..., str]


def make_run(
    folder: Path,
    *,
    adapter: str = "lora",
    words: tuple[str, ...] = (),
    seed: int = 0,
    accuracy: float | None = 0.9,
    learns: int = 1000,
    memory: int = 10**9,
    **changes: Any,
) -> Path:
    """A finished run's folder, with what reports read of it."""
    (folder / ".hydra").mkdir(parents=True)
    settings = {
        "seed": seed,
        "monitor": {"metric": "validation/accuracy", "mode": "max"},
        "adapter": {"words": list(words)},
    }
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(settings))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"adapter={adapter}", *words, f"seed={seed}"]))
    summary = {
        "task": "text_classification",
        "adapter": adapter,
        "metrics": {"test/accuracy": accuracy, "validation/accuracy": 0.8, "test/loss": 0.3},
        "parameters": {"trainable": learns, "total": 100_000},
        "bytes": {"adapter": 4 * learns, "model": 400_000, "peak_memory": memory},
        "seconds_per_step": 0.05,
        "seed": seed,
        "steps": 10,
        "data": {"rows": {"test": 20}, "digests": {"test": "abc", "validation": "def"}},
        **changes,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text("step,validation/accuracy\n4,0.7\n9,0.8\n10,0.8\n")
    return folder


def compared(*folders: Path, metric: str | None = None) -> Comparison:
    return Comparison.of([read_run(run) for run in find_runs(folders)], metric)


def test_seeds_are_one_row_and_a_difference_is_told_from_chance_in_pairs(tmp_path: Path) -> None:
    # of each seed DoRA is 0.02 better, though seeds differ by more than that
    for seed, base in enumerate((0.70, 0.80, 0.90)):
        make_run(tmp_path / f"lora{seed}", seed=seed, accuracy=base)
        make_run(tmp_path / f"dora{seed}", adapter="dora", seed=seed, accuracy=base + 0.02 + 0.001 * seed, learns=2000)
    comparison = compared(tmp_path)
    assert [(group.name, len(group.runs)) for group in comparison.groups] == [("dora", 3), ("lora", 3)]
    lora = comparison.groups[1].score("test/accuracy")
    assert lora is not None and lora.mean == pytest.approx(0.8)
    assert lora.margin == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)  # Student's t of two degrees of freedom
    assert comparison.best is comparison.groups[0]
    said = comparison.verdict()
    assert said[0].startswith("dora has the best test/accuracy: 0.8210 ±")
    assert said[1] == "lora is behind it by 0.0210 ± 0.0025, with 0.5 times the trainable parameters."


def test_a_length_that_all_but_a_solved_probe_have_is_no_part_of_a_name(tmp_path: Path) -> None:
    length = ("trainer.max_epochs=3",)
    make_run(tmp_path / "lora", words=(*length, "adapter.rank=4"))
    make_run(tmp_path / "full", adapter="full", words=length)
    make_run(tmp_path / "probe", adapter="linear_probe", words=("adapter.rank=4",), steps=0)
    names = {group.name for group in compared(tmp_path).groups}
    assert names == {"lora adapter.rank=4", "full", "linear_probe adapter.rank=4"}
    make_run(tmp_path / "longer", words=("trainer.max_epochs=9",))
    names = {group.name for group in compared(tmp_path).groups}
    assert {"full trainer.max_epochs=3", "lora trainer.max_epochs=9"} < names


def test_a_solved_probe_has_no_rate_in_its_name(tmp_path: Path) -> None:
    make_run(tmp_path / "lora", words=("optimizer.lr=0.002",))
    make_run(tmp_path / "probe", adapter="linear_probe", words=("optimizer.lr=0.001",), steps=0)
    assert {group.name for group in compared(tmp_path).groups} == {"lora optimizer.lr=0.002", "linear_probe"}


def test_runs_that_differ_by_chance_are_said_to_be_alike(tmp_path: Path) -> None:
    for seed, (one, other) in enumerate([(0.80, 0.82), (0.83, 0.80), (0.81, 0.82)]):
        make_run(tmp_path / f"a{seed}", words=("adapter.rank=4",), seed=seed, accuracy=one)
        make_run(tmp_path / f"b{seed}", words=("adapter.rank=8",), seed=seed, accuracy=other)
    (said,) = [line for line in compared(tmp_path).verdict() if "distinguishable" in line]
    assert re.match(r"lora adapter\.rank=\d is not distinguishable from it \(difference ", said)


def test_of_one_seed_nothing_is_claimed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", adapter="full", accuracy=0.95, memory=3 * 10**9)]
    said = " ".join(compared(*runs).verdict())
    assert "lora is 0.0500 behind it, in one seed, with 0.333 times the memory" in said
    assert "no difference can be told from chance" in said


def test_the_interval_is_wrong_for_few_of_many_pairs_of_equal_methods() -> None:
    import random

    from loralight.reports.intervals import estimate

    draw = random.Random(0)
    found = [estimate([draw.gauss(0, 1) - draw.gauss(0, 1) for _ in range(5)]) for _ in range(2000)]
    claimed = [one.margin is not None and abs(one.mean) > one.margin for one in found]
    assert 0.03 < sum(claimed) / len(claimed) < 0.07


def test_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    from loralight.reports.intervals import _T, studentised_range

    for methods, freedom in [(3, 4), (9, 16), (9, 8), (4, 12)]:
        expected = stats.studentized_range.ppf(0.95, methods, freedom)
        assert studentised_range(methods, freedom) == pytest.approx(expected, rel=0.01)
    assert [stats.t.ppf(0.975, degrees) for degrees in range(1, len(_T) + 1)] == pytest.approx(list(_T), abs=6e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ner"}, "E-COMPARE: .* is of task text_classification, .* of ner"),
        ({"data": {"digests": {"test": "other"}}}, "E-COMPARE: .* measured on different test rows"),
        ({"metrics": {}, "parameters": None}, "E-RUN: .*has no 'parameters'"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **changes)
    with pytest.raises(InputError, match=f"^{message}"):
        compared(tmp_path)


def test_rows_that_were_encoded_otherwise_are_compared(tmp_path: Path) -> None:
    for name, encoded in (("a", "abc"), ("b", "other")):
        make_run(tmp_path / name, words=[f"model={name}"], data={"digests": {"test": encoded}, "asked": {"test": "1"}})
    make_run(tmp_path / "of_an_earlier_version", words=["model=c"], data={"digests": {"test": "abc"}})
    assert len(compared(tmp_path).groups) == 3
    make_run(tmp_path / "c", data={"digests": {"test": "third"}, "asked": {"test": "2"}})
    with pytest.raises(InputError, match=r"^E-COMPARE: .* measured on different test rows"):
        compared(tmp_path)


def test_a_metric_that_nobody_measured_names_those_there_are(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(InputError, match=r"^E-MONITOR: metric=test/accurracy is in none.*test/accuracy"):
        compared(tmp_path, metric="test/accurracy")


def test_a_loss_is_better_when_lower(tmp_path: Path) -> None:
    for name, loss in (("a", 0.2), ("b", 0.5)):
        make_run(tmp_path / name, words=(f"adapter.rank={loss}",), metrics={"test/loss": loss, "test/accuracy": 0.5})
    best = compared(tmp_path, metric="test/loss").best
    assert best is not None and best.runs[0].folder.name == "a"


def test_a_run_that_is_not_finished_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^E-RUN: .* is no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"^E-RUN: .*no finished run in it"):
        find_runs([tmp_path])
    run = make_run(tmp_path / "a")
    for content in ("", "[]", '{"task": NaN}', '{"task": "x", "task": "y"}', "{" * 100_000):
        (run / "summary.json").write_text(content)
        with pytest.raises(InputError, match=r"^E-RUN: .*damaged"):
            compared(run)


def test_a_link_in_a_stranger_s_folder_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"task": "secret"}')
    run = make_run(tmp_path / "a")
    (run / "summary.json").unlink()
    (run / "summary.json").symlink_to(secret)
    with pytest.raises(InputError, match=r"^E-RUN"):
        compared(run)


class _Page(HTMLParser):
    """The elements and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_whole_and_says_nothing_in_a_stranger_s_words_but_as_text(tmp_path: Path) -> None:
    evil = "adapter.rank=<script>alert(1)</script><img/src=x>"
    make_run(tmp_path / "a", words=(evil,))
    make_run(tmp_path / "b", adapter="full", accuracy=0.7, learns=100_000)
    comparison = compared(tmp_path)
    files = comparison.write(tmp_path / "report", "two runs")
    assert [file.suffix for file in files] == [".md", ".csv", ".json", ".html"]
    text = files[-1].read_text()
    page = _Page()
    page.feed(text)
    assert {"svg", "table"} <= set(page.tags) and not {"script", "img", "link", "iframe"} & set(page.tags)
    assert [address for address in page.addresses if not address.startswith("#")] == []  # within the page alone
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    with files[1].open() as file:
        assert [row["test/accuracy"] for row in csv.DictReader(file)] == ["0.9", "0.7"]
    assert comparison.write(tmp_path / "again", "two runs")[-1].read_bytes() == files[-1].read_bytes()


def test_a_comparison_of_real_runs_by_the_command(
    in_process: InProcess, refused: Refused, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir='one=two'") == 0
    assert in_process("train", *tiny_run, "adapter=bitfit", "hydra.run.dir=other") == 0
    capsys.readouterr()
    assert in_process("compare", "one=two", "other", "output=report") == 0
    printed = capsys.readouterr().out
    assert "has the best test/accuracy" in printed and "bitfit" in printed
    assert {file.name for file in (tmp_path / "report").iterdir()} == {
        f"report.{end}" for end in ("html", "md", "csv", "json")
    }
    assert "E-OUTPUT" in refused("compare", "one=two", "output=report")
    assert "E-RUN" in refused("compare", "nowhere")
    shutil.rmtree(tmp_path / "report")
    assert (
        in_process(
            "train", *tiny_run, "data.limit_rows=10", "data.test='${data.path}/train.csv'", "hydra.run.dir=third"
        )
        == 0
    )
    assert "E-COMPARE" in refused("compare", "one=two", "third")
