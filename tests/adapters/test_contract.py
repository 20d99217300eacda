"""Each file in ``conf/adapter/`` is put to what every adapter method promises."""

import pytest

from loralight.config.plugins import conf_folders
from loralight.testing import AdapterContract

METHODS = sorted(file.stem for folder in conf_folders() for file in folder.glob("adapter/*.yaml"))


class TestEveryMethod(AdapterContract):
    @pytest.fixture(scope="class", params=METHODS)
    @classmethod
    def method(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)
