"""Runs in processes of their own. What a killed command leaves is tested with `loralight tune`."""

from pathlib import Path

from loralight.commands.processes import Processes


def test_a_run_that_is_enough_is_told_to_stop_and_leaves_a_checkpoint(tiny_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    has_begun = folder.joinpath("checkpoints").exists
    error = Processes(1).finish([*tiny_run, "probe=false", "trainer.max_epochs=1000"], folder, is_enough=has_begun)
    assert error is None and list(folder.rglob("manifest.json"))
    assert not (folder / "summary.json").exists()
