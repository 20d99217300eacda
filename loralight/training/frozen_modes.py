"""The modules that stay in evaluation mode during training, so that frozen modules compute as before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from loralight.adapters.base import trainable
from loralight.adapters.disabled import trains_
from loralight.errors import InputError

BatchNormMode = Literal["frozen", "statistics", "affine"]
_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, kw_only=True)
class FrozenModes:
    """The modes of frozen modules during training.

    Args:
        still: modules that stay in evaluation mode.
        fixed: the BatchNorm layers among them in which nothing ever changes.
        adapted_norms: names of BatchNorm layers that change although the adapter does not adapt them.
    """

    still: Sequence[nn.Module] = ()
    fixed: Sequence[nn.Module] = ()
    adapted_norms: Sequence[str] = ()

    def keep_(self) -> None:
        """Restore evaluation mode where a module's own ``train()`` has switched it off."""
        for module in self.still:
            module.training = False


def choose_modes_(
    model: nn.Module, head: Sequence[nn.Module], *, base_dropout: bool, batch_norm: BatchNormMode
) -> FrozenModes:
    """Choose the modules that stay in evaluation mode: frozen BatchNorm; without ``base_dropout`` all frozen modules.

    Args:
        model: the adapted model; ``batch_norm="affine"`` makes its BatchNorm layers trainable here.
        head: the new parts of the model.
        base_dropout: whether dropout of frozen layers stays on.
        batch_norm: see `AdapterTask`.

    Raises:
        InputError: there is no such mode, or BatchNorm is to change, but the model has none (``E-BATCH-NORM``).
    """
    learns = {name.rpartition(".")[0] for name in trainable(model)}
    in_head = {id(module) for part in head for module in part.modules()}
    base = {name: module for name, module in model.named_modules() if id(module) not in in_head}
    frozen = {name: module for name, module in base.items() if name not in learns}
    norms = {name: module for name, module in frozen.items() if isinstance(module, _BATCH_NORM)}
    if batch_norm not in get_args(BatchNormMode):
        modes = ", ".join(get_args(BatchNormMode))
        raise InputError("E-BATCH-NORM", f"batch_norm={batch_norm}: give one of {modes}; auto is for loralight train")
    if batch_norm != "frozen" and not any(isinstance(module, _BATCH_NORM) for module in base.values()):
        raise InputError("E-BATCH-NORM", f"task.batch_norm={batch_norm}: the model has no BatchNorm; leave it frozen")
    if batch_norm == "affine":
        for norm in norms.values():
            norm.requires_grad_(True)
    if batch_norm != "frozen":
        trains_(norms.values(), by=f"batch_norm={batch_norm}")
    following = norms if batch_norm == "statistics" else {}
    still = [module for name, module in frozen.items() if (name in norms or not base_dropout) and name not in following]
    return FrozenModes(
        still=still,
        fixed=list(norms.values()) if batch_norm == "frozen" else (),
        adapted_norms=list(norms) if batch_norm != "frozen" else (),  # trained in full, a norm changes anyway
    )
