"""Bottleneck adapters: small networks of two layers inside each block of a frozen model."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.bottleneck import SERIAL, add_parallel_, width_of
from loralight.errors import InputError
from loralight.models.blocks import Sublayers, blocks, norms, sublayers


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Adapter):
    """Adds ``scale * up(relu(down(x)))`` to the output of sublayers; ``up`` starts at 0, so outputs start unchanged.

    Args:
        reduction_factor: ratio of a sublayer's width to the bottleneck's.
        train_norms: whether normalisation layers are trained too.
    """

    reduction_factor: int
    train_norms: bool = False

    def __post_init__(self) -> None:
        if self.reduction_factor < 1:
            raise InputError(
                "E-REDUCTION", f"adapter.reduction_factor is {self.reduction_factor!r}; give at least 1, such as 16"
            )

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        adapted: dict[str, list[str]] = {}
        for block in blocks(candidates):
            for kind, names in self.add_(candidates, block, sublayers(candidates, block)).items():
                adapted.setdefault(f"({kind})", []).extend(names)
        missing = [kind for kind in self.places if f"({kind})" not in adapted]
        if missing:
            raise InputError(
                "E-SUBLAYER",
                f"no {missing[0]} with linear layers is found in the blocks of {type(model).__name__}, where "
                f"{type(self).__name__} goes; choose another adapter, such as {self.instead}",
            )
        if self.train_norms and (found := norms(candidates)):
            adapted["(norms)"] = list(found)
            for norm in found.values():
                for parameter in norm.parameters(recurse=False):
                    parameter.requires_grad_(True)
        return adapted

    places: ClassVar[tuple[str, ...]]
    """The kinds of sublayers that a model must have."""

    instead: ClassVar[str] = "lora"
    """The method to suggest for a model without them."""

    @abstractmethod
    def add_(self, modules: Mapping[str, nn.Module], block: str, parts: Sublayers) -> dict[str, list[str]]:
        """Add bottlenecks to one block, and return the changed layers' names by kind of sublayer."""

    def in_series_(self, modules: Mapping[str, nn.Module], names: list[str]) -> list[str]:
        """Add a bottleneck after each of the layers."""
        for name in names:
            width = max(1, width_of(modules[name]) // self.reduction_factor)
            SERIAL[type(modules[name])].upgrade_(modules[name], width)
        return names


@dataclass(frozen=True, kw_only=True)
class Houlsby(BottleneckAdapter):
    """Two bottlenecks in each block, after attention and the feed-forward network, before the residual connection.

    Houlsby et al., 2019, https://arxiv.org/abs/1902.00751; in the paper the sublayer's dropout comes before the
    bottleneck, here after it.

    Args:
        reduction_factor: ratio of a sublayer's width to the bottleneck's; 1024 / 64 in the paper's BERT-large.
        train_norms: whether normalisation layers are trained too, as in the paper.
        lr: learning rate per step; the middle of the rates that the paper searched (3e-5, 3e-4, 3e-3).
    """

    reduction_factor: int = 16
    train_norms: bool = True
    lr: float = 3e-4

    places = ("attention", "feed-forward network")
    instead = "pfeiffer"

    def add_(self, modules: Mapping[str, nn.Module], block: str, parts: Sublayers) -> dict[str, list[str]]:
        outputs = {
            "attention": [names[-1] for names in parts.attention],
            "feed-forward network": parts.feed_forward[-1:],
        }
        return {kind: self.in_series_(modules, names) for kind, names in outputs.items() if names}


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(BottleneckAdapter):
    """One bottleneck in each block, after the feed-forward network and before the residual connection.

    Pfeiffer et al., 2020, https://arxiv.org/abs/2005.00247; in the paper it reads the sum with the residual, here only
    the network's output. In a block of convolutions it follows the last convolution, and consists of convolutions of
    width 1 (Rebuffi et al., 2017, https://arxiv.org/abs/1705.08045).

    Args:
        reduction_factor: ratio of a sublayer's width to the bottleneck's, as in the paper's experiments.
        lr: learning rate per step; ten times that of the paper, whose runs are longer. At 1e-4, three epochs of 2,100
            sentences do not take it beyond a linear probe.
    """

    reduction_factor: int = 16
    lr: float = 1e-3

    places = ("feed-forward network",)

    def add_(self, modules: Mapping[str, nn.Module], block: str, parts: Sublayers) -> dict[str, list[str]]:
        convolutions = [f"{block}.{name}" for name, part in modules[block].named_children() if type(part) is nn.Conv2d]
        names = (parts.feed_forward or convolutions)[-1:]
        return {"feed-forward network": self.in_series_(modules, names)} if names else {}


@dataclass(frozen=True, kw_only=True)
class Parallel(BottleneckAdapter):
    """One bottleneck in each block, parallel to the feed-forward network, whose input it reads.

    He et al., 2022, https://arxiv.org/abs/2110.04366.

    Args:
        reduction_factor: ratio of a sublayer's width to the bottleneck's; 1024 / 512 in the paper's best model.
        scale: factor of the bottleneck's output, as in the paper.
        lr: learning rate per step; the paper uses 5e-5 to 1e-4 in longer runs.
    """

    reduction_factor: int = 2
    scale: float = 4.0
    lr: float = 1e-3

    places = ("feed-forward network",)

    def add_(self, modules: Mapping[str, nn.Module], block: str, parts: Sublayers) -> dict[str, list[str]]:
        if not parts.feed_forward:
            return {}
        first, last = parts.feed_forward[0], parts.feed_forward[-1]
        width = max(1, width_of(modules[last]) // self.reduction_factor)
        add_parallel_(modules[first], modules[last], width, scale=self.scale)
        return {"feed-forward network": [last]}
