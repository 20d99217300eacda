"""The arguments of a task, remembered so that its adapter's folder can name them."""

import json
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any


def remembering(initialise: Callable[..., None]) -> Callable[..., None]:
    """A constructor that stores its plain-data arguments in the object's ``arguments``."""
    parameters = signature(initialise).parameters
    others = next((name for name, one in parameters.items() if one.kind is Parameter.VAR_KEYWORD), "")

    @wraps(initialise)
    def noted(self: Any, *args: Any, **keywords: Any) -> None:
        if "arguments" not in vars(self):  # else the constructor of a derived class has stored its own
            given = signature(initialise).bind(self, *args, **keywords).arguments
            given |= given.pop(others, {})
            vars(self)["arguments"] = {name: value for name, value in given.items() if _is_plain(value)}
        initialise(self, *args, **keywords)

    return noted


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
