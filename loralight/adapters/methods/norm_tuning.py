"""Tuning of normalisation layers' scales and shifts: Zhao et al., 2023, https://arxiv.org/abs/2312.11420."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.peft.config import targeting
from loralight.errors import InputError
from loralight.models.blocks import norms


@dataclass(frozen=True, kw_only=True)
class NormTuning(Adapter):
    """Train LayerNorm, RMSNorm, BatchNorm and similar layers outside the head.

    A trained BatchNorm also follows the statistics of the data (as in Frankle et al., 2021,
    https://arxiv.org/abs/2003.00152); the statistics are saved with the adapter.

    Args:
        lr: learning rate per step.
    """

    lr: float = 1e-3

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        found = norms(candidates)
        if not found:
            raise InputError(
                "E-NORM",
                f"{type(model).__name__} has no norm with scale or shift outside its head; choose another adapter",
            )
        for norm in found.values():
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(True)
        return {"(norms)": list(found)}

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        learning = _learning(model)
        if any(isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in learning.values()):
            return None  # PEFT does not keep statistics
        return {"peft_type": "LN_TUNING", **targeting(model, learning)}

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        return {
            f"{name}.{part}": f"{name}.ln_tuning_layers.{part}"
            for name, norm in _learning(model).items()
            for part, _ in norm.named_parameters(recurse=False)
        }


def _learning(model: nn.Module) -> dict[str, nn.Module]:
    """The norms that are trained on their own, not as part of a head that is trained as a whole."""
    modules = dict(model.named_modules())
    whole = {name for name, module in modules.items() if all(p.requires_grad for p in module.parameters())}
    return {
        name: norm for name, norm in norms(modules).items() if name in whole and name.rpartition(".")[0] not in whole
    }
