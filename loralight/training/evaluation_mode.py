"""Evaluation mode for several threads at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from torch import nn

_SWITCHING = Lock()  # held while a model's mode is switched, and not while it computes


class SharedEvaluation:
    """Counts the contexts of a module that are open, in all threads."""

    def __init__(self) -> None:
        self._num_open = 0
        self._was_training = False  # before the first context was opened

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Evaluation mode, until the last thread has left this context; then the mode before the first entered."""
        with _SWITCHING:
            if not self._num_open:
                self._was_training = module.training
                module.eval()
            self._num_open += 1
        try:
            yield
        finally:
            with _SWITCHING:
                self._num_open -= 1
                if not self._num_open:
                    module.train(self._was_training)
