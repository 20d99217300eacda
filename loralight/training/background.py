"""Checkpoints that a thread writes while training goes on."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loralight.training.checkpoint import FolderCheckpointIO


class BackgroundCheckpointIO(FolderCheckpointIO):
    """Writes checkpoints as `FolderCheckpointIO` does, in a thread.

    Training waits only until a checkpoint's values are copied, and for the checkpoint before it to be whole: so one is
    being written at most, and a kill costs at most the steps between two checkpoints, and those of writing one. What is
    to be removed is removed in its turn: an older checkpoint stays until the newer one is whole.

    A failure to write is raised when the next checkpoint is saved or read, or when training ends.
    """

    def __init__(self, run: Path | None = None) -> None:
        super().__init__(run)
        self._thread: ThreadPoolExecutor | None = None
        self._asked: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        write = self.copied(checkpoint, path)
        self.settle()
        self._ask(write)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self.settle()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        self._ask(lambda: FolderCheckpointIO.remove_checkpoint(self, path))

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            self._thread = None

    def settle(self) -> None:
        """Wait until everything that was asked for is done.

        Raises:
            InputError: a checkpoint could not be written (``E-DISK``).
        """
        asked, self._asked = self._asked, []
        for each in asked:
            each.result()

    def _ask(self, what: Callable[[], None]) -> None:
        if self._thread is None:  # a trainer may fit again after its teardown
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._asked.append(self._thread.submit(what))
