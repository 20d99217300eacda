"""What the suite says of itself: a test that is cut leaves nothing that runs beside the next."""

import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def test_a_command_that_is_cut_leaves_nothing_running(
    run_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    ours, theirs = os.pipe()
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["bash", "-c", "sleep 1000 & wait"], cwd=tmp_path, timeout=1, pass_fds=[theirs])
    os.close(theirs)
    ended, _, _ = select.select([ours], [], [], 60)  # the pipe's end is read once nobody holds its other side
    assert ended and os.read(ours, 1) == b""
    os.close(ours)
