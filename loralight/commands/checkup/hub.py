"""Checks of what commands read and print over: the hub of models, and the encoding of the terminal."""

import sys
from email.utils import parsedate_to_datetime
from socket import gaierror
from time import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from loralight.commands.checkup.disks import skew
from loralight.commands.checkup.finding import Finding, Machine

_PATIENCE = 4.0  # seconds
_MARKS = "┏━│ é →"  # of tables and texts


def hub(machine: Machine) -> Finding:
    """Whether the hub of models answers, as loralight would ask it."""
    if (offline := machine.environment.get("HF_HUB_OFFLINE", "")).upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(f"not asked, as HF_HUB_OFFLINE={offline}: models and data come from the cache alone")
    address = machine.environment.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urlopen(Request(address, method="HEAD"), timeout=_PATIENCE) as answer:
            date = answer.headers["Date"]
    except HTTPError as error:  # it is there
        date = error.headers["Date"]
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, gaierror):
            return Finding(f"{address} is not known here: as with HF_HUB_OFFLINE=1 the cache alone is used")
        wrong = f"{address} does not answer ({reason}); downloads would wait for it"
        return Finding("no answer", wrong, "export HF_HUB_OFFLINE=1 (the cache alone), or HTTPS_PROXY= or HF_ENDPOINT=")
    agreed = skew(parsedate_to_datetime(date).timestamp() - time() if date else 0.0, "the hub's clock")
    return Finding(f"{address} answers", agreed.wrong, agreed.remedy)


def encoding(machine: Machine) -> Finding:
    """Whether tables and texts can be printed."""
    name = sys.stdout.encoding
    try:
        _MARKS.encode(name)
    except UnicodeEncodeError:
        return Finding(name, "tables and many texts cannot be printed", "export PYTHONUTF8=1")
    return Finding(name)
