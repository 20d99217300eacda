"""Which modules stay in evaluation mode in training, so that frozen ones keep computing as before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from loralight.adapters.base import trainable
from loralight.adapters.disabled import trains_
from loralight.errors import InputError

BatchNormMode = Literal["frozen", "statistics", "affine"]
_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, kw_only=True)
class FrozenModes:
    """The modes of frozen modules in training.

    Args:
        still: stay in evaluation mode.
        fixed: of these, BatchNorm layers of which nothing ever changes.
        adapted_norms: names of BatchNorm layers that change without being the adapter's.
    """

    still: Sequence[nn.Module] = ()
    fixed: Sequence[nn.Module] = ()
    adapted_norms: Sequence[str] = ()

    def keep_(self) -> None:
        """Restore the modes that a module's own ``train()`` has switched."""
        for module in self.still:
            module.training = False


def choose_modes_(
    model: nn.Module, head: Sequence[nn.Module], *, base_dropout: bool, batch_norm: BatchNormMode
) -> FrozenModes:
    """Choose the modules that stay in evaluation mode: frozen BatchNorm, and without ``base_dropout`` all frozen ones.

    Args:
        model: adapted; with ``batch_norm="affine"`` its BatchNorm layers learn from here on.
        head: its new parts.
        base_dropout: whether dropout of frozen layers stays on.
        batch_norm: see `AdapterTask`.

    Raises:
        InputError: BatchNorm is to change, and there is none (``E-BATCH-NORM``).
    """
    learns = {name.rpartition(".")[0] for name in trainable(model)}
    in_head = {id(module) for part in head for module in part.modules()}
    base = {name: module for name, module in model.named_modules() if id(module) not in in_head}
    frozen = {name: module for name, module in base.items() if name not in learns}
    norms = {name: module for name, module in frozen.items() if isinstance(module, _BATCH_NORM)}
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
        adapted_norms=list(norms) if batch_norm != "frozen" else (),  # those that learn as a whole do both
    )
