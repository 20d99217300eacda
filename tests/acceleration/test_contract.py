"""Every acceleration of ours keeps its promises; a new file in ``conf/acceleration/`` is found by itself."""

from pathlib import Path

import pytest
import yaml

import loralight.conf
from loralight.testing import AccelerationContract

FOLDER = Path(loralight.conf.__path__[0]) / "acceleration"
CHOICES = {
    name: file.stem
    for file in sorted(FOLDER.glob("*.yaml"))
    for name in yaml.safe_load(file.read_text(encoding="utf-8"))
    if name != "defaults"
}


@pytest.mark.parametrize("acceleration", CHOICES, scope="class")
class TestOurs(AccelerationContract):
    @pytest.fixture(autouse=True)
    def named(self, acceleration: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "acceleration", acceleration)
        monkeypatch.setattr(type(self), "choice", CHOICES[acceleration])
