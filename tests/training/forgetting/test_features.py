"""The likeness of features is the textbook's, and 1 where nothing has moved."""

import numpy as np
import pytest
import torch

from loralight.adapters import Lora
from loralight.tasks.text_classification import TextClassification
from loralight.training.forgetting.features import FeatureDrift, cka


def test_alignment_is_the_textbook_s() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(20, 6, generator=generator), torch.randn(20, 9, generator=generator)
    x, y = ((a - a.mean(0)).double().numpy() for a in (one, other))
    wanted = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))  # Kornblith et al.
    assert cka(one, other) == pytest.approx(wanted, rel=1e-9)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert cka(one, 3 * one @ turned + 5) == pytest.approx(1, abs=1e-5)


def test_features_that_have_moved_are_less_like_the_base_s(
    tiny_bert: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("general") / "general.txt"
    file.write_text("a fine day\nrain fell on the town\na ship left the harbour at noon\nwhat is it\n")
    task = TextClassification(checkpoint=tiny_bert, labels=["a", "b"], adapter=Lora(targets="all-linear"))
    task.configure_model()
    probe = FeatureDrift(texts=str(file))
    probe.prepare(task)
    with torch.no_grad(), task.unaccelerated():
        base = probe.measure(task, None)
        assert base.scores == pytest.approx({"cosine": 1, "cka": 1}) and base.outputs.shape == (4, 32)
        for name, tensor in task.trainable_tensors().items():
            tensor.add_(torch.randn_like(tensor) if "lora_B" in name else 0.0)
        moved = probe.measure(task, base.outputs)
    assert moved.scores["cosine"] < 0.9 and moved.scores["cka"] < 0.99
