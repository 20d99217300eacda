import pytest

from loralight.testing import TaskContract


class TestNer(TaskContract, overrides=["task=ner", "data.batch_size=4", "data.limit_rows=64"]): ...


@pytest.mark.slow
class TestNerInWindows(
    TaskContract, overrides=["task=ner", "data.limit_rows=64", "model.max_length=12", "model.stride=4"]
): ...
