from loralight.testing import TaskContract


class TestNer(TaskContract, overrides=["task=ner", "data.batch_size=4"]): ...


class TestNerInWindows(
    TaskContract, overrides=["task=ner", "data.batch_size=4", "model.max_length=12", "model.stride=4"]
): ...
