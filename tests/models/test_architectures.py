"""The architectures of transformers' and timm's registries train exactly, or are refused, as `docs/models.md` says."""

from pathlib import Path

import pytest

from .architectures import found, is_of_the_commit, outcome, told, versions

PAGE_OF, PAGE = told()
CASES = [
    pytest.param(kind, name, marks=() if is_of_the_commit(kind, name) else pytest.mark.slow, id=f"{kind}-{name}")
    for kind, name in found()
]


@pytest.mark.filterwarnings("ignore")  # of other people's code, about themselves
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_architecture_trains_exactly_or_is_refused_by_an_error_of_ours(kind: str, name: str, tmp_path: Path) -> None:
    if (kind, name) not in PAGE:
        pytest.skip("docs/models.md says nothing of it yet: docs/models.py tries it")
    result, why = outcome(kind, name, tmp_path)
    if versions() == PAGE_OF:
        expected, reason = PAGE[kind, name]
        assert result == expected, why
        assert result != "refused" or why.partition(":")[0] == reason.partition(":")[0]


@pytest.mark.skipif(versions() != PAGE_OF, reason=f"docs/models.md tells of {PAGE_OF}")
def test_the_page_tells_of_what_the_registries_have() -> None:
    assert PAGE and PAGE.keys() <= set(found())
