"""The methods of PEFT that can be injected into a model; PEFT is an optional extra."""

import dataclasses
from functools import cache
from typing import Any

from loralight.errors import InputError, did_you_mean


@cache
def common() -> set[str]:
    """Keys of every config of PEFT's."""
    from peft import PeftConfig

    return {f.name for f in dataclasses.fields(PeftConfig)}


def mapping() -> Any:
    """PEFT's module with the mappings of its methods; raises ``E-PACKAGE`` without PEFT."""
    try:
        import peft.mapping
    except ModuleNotFoundError as error:
        raise InputError(
            "E-PACKAGE", f'methods of PEFT need the package peft ({error}): pip install "loralight[peft]"'
        ) from error
    return peft.mapping


def config_class(method: Any) -> Any:
    """PEFT's config class of a method that can be injected.

    Raises:
        InputError: there is no such method, or it needs more than layers of a model (``E-PEFT``).
    """
    classes = {kind.value: found for kind, found in mapping().PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    possible = [name for name in classes if _can_be_injected(name)]
    if not isinstance(method, str) or method not in classes:
        raise InputError(
            "E-PEFT",
            f"PEFT has no method {method!r:.80}.{did_you_mean(str(method).upper(), classes)} "
            f"It has: {', '.join(possible)}",
        )
    if method not in possible:
        raise InputError(
            "E-PEFT",
            f"{method} adds to a model's inputs, or shares tensors between layers, or needs a training loop of its "
            f"own: it is no matter of single layers. These are: {', '.join(possible)}",
        )
    return classes[method]


def _can_be_injected(method: str) -> bool:
    from peft import PromptLearningConfig
    from peft.tuners.tuners_utils import BaseTuner

    tuner = mapping().PEFT_TYPE_TO_TUNER_MAPPING.get(method)
    config = mapping().PEFT_TYPE_TO_CONFIG_MAPPING[method]
    return (
        isinstance(tuner, type)
        and issubclass(tuner, BaseTuner)
        and not tuner.uses_shared_state
        and not issubclass(config, PromptLearningConfig)
        and "target_modules" in {f.name for f in dataclasses.fields(config)}
        and not hasattr(tuner, "update_and_allocate")  # AdaLoRA's, which must be called after every step
    )
