"""`loralight spectrum`: a finished run's updates in numbers and as a picture."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

InProcess = Callable[..., int]
Refused = Callable[..., str]


@pytest.fixture
def run(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> Path:
    """A finished run in the folder ``run``, of AdaLoRA: its layers have ranks of their own."""
    assert in_process("train", *tiny_run, "adapter=adalora", "adapter.rank=2", "hydra.run.dir=run") == 0
    return tmp_path / "run"


def test_a_table_a_proposal_and_a_picture(
    run: Path,
    in_process: InProcess,
    refused: Refused,
    tiny_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "160")
    assert in_process("spectrum", "run=run", "energy=0.8", "output=spectrum.png") == 0
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.1.output.dense" in printed and "mean" in printed and "picture: spectrum.png" in printed
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert lines[0].startswith("adapter.rank=")
    again = [line.strip("'") for line in lines]
    assert in_process("train", *tiny_run, *again, "hydra.run.dir=again") == 0, "what is proposed can be pasted"
    assert "E-OUTPUT" in refused("spectrum", "run=run", "output=spectrum.png")


def test_what_cannot_be_shown_is_told(run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "E-ENERGY: energy is 1.5" in refused("spectrum", "run=run", "energy=1.5")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = 'E-PACKAGE: a picture needs matplotlib: pip install "loralight[report]"'
    assert message in refused("spectrum", "run=run", "output=spectrum.png")


def test_an_adapter_without_low_rank_updates_has_no_spectrum(
    in_process: InProcess, refused: Refused, tiny_run: list[str]
) -> None:
    assert in_process("train", *tiny_run, "adapter=linear_probe", "hydra.run.dir=probe") == 0
    assert "E-SPECTRUM: run=probe: LinearProbe" in refused("spectrum", "run=probe")
