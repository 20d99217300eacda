from loralight.testing import TaskContract


class TestTextClassification(TaskContract, overrides=["task=text_classification", "data.batch_size=4"]): ...
