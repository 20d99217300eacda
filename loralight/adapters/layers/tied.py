"""Layers that share a weight, as a language model's embeddings and output layer do, and so share an update."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from loralight.adapters.layers.embedding import LoraEmbedding
from loralight.adapters.layers.lora import LoraLayer, LoraLinear
from loralight.adapters.targets import match
from loralight.errors import InputError


class LoraTwin(LoraLayer):
    """A layer that shares the factors of an embedding; only the embedding merges them into the shared weight."""

    embedding_A: Tensor
    embedding_B: Tensor

    @classmethod
    def share_(cls, layer: nn.Module, owner: LoraEmbedding) -> None:
        """Turn ``layer`` into a LoRA layer that shares ``owner``'s parameters, as it shares its weight."""
        layer.__class__ = cls
        assert isinstance(layer, LoraTwin)
        layer.embedding_A, layer.embedding_B = owner.lora_A, owner.lora_B
        layer.rank, layer.alpha, layer.lora_dropout = owner.rank, owner.alpha, owner.lora_dropout
        layer.rank_dropout, layer.use_rslora = owner.rank_dropout, owner.use_rslora

    extras = (*LoraLayer.extras, "embedding_A", "embedding_B")

    def merge_(self) -> None:
        self.strip_()


class TwinEmbedding(LoraTwin, LoraEmbedding):
    """An embedding that shares its weight with another."""

    @property
    def lora_A(self) -> Tensor:  # type: ignore[override]  # a parameter by another name
        return self.embedding_A

    @property
    def lora_B(self) -> Tensor:  # type: ignore[override]
        return self.embedding_B


class TwinLinear(LoraTwin, LoraLinear):
    """A linear layer that shares its weight with an embedding; its update is ``A^T B^T`` of the embedding's A and B."""

    @property
    def lora_A(self) -> Tensor:  # type: ignore[override]  # a parameter, seen from the other side
        return self.embedding_B.T

    @property
    def lora_B(self) -> Tensor:  # type: ignore[override]
        return self.embedding_A.T


TWINS: dict[type[nn.Module], type[LoraTwin]] = {nn.Embedding: TwinEmbedding, nn.Linear: TwinLinear}
"""The LoRA class of each class of layer that shares its weight with an adapted embedding."""


def tied(
    model: nn.Module, candidates: Mapping[str, Any], names: Iterable[str], exclude: str | Sequence[str]
) -> dict[str, list[str]]:
    """The layers that share a weight with each layer to be adapted, itself included, an embedding first.

    Args:
        candidates: the modules outside the head, by name.
        names: the layers to be adapted; layers that share a weight with one of them are in the result too.
        exclude: patterns of layers that must stay as they are.

    Raises:
        InputError: a layer shares its weight with a layer that is excluded, or that is neither an embedding nor linear
            (``E-TIED``): merging an update of one layer changes all.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    patterns = [exclude] if isinstance(exclude, str) else exclude
    kept = {name for pattern in patterns for name in match(candidates, pattern, "adapter.exclude")}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name, [name])
        for weight in _merged_into(candidates[name]):
            # a quantised weight is not a parameter, so no layer shares it
            group = sorted(
                owners.get(id(weight), [name]), key=lambda member: type(candidates.get(member)) is not nn.Embedding
            )
            if len(group) > 1:
                _refuse_unless_alike(name, [candidates.get(member) for member in group], group, kept)
                groups |= dict.fromkeys(group, group)
    return groups


def share_(candidates: Mapping[str, Any], group: list[str]) -> None:
    """Give the layers of a group the factors of its first layer."""
    for name in group[1:]:
        TWINS[type(candidates[name])].share_(candidates[name], candidates[group[0]])


def _refuse_unless_alike(name: str, layers: list[Any], group: list[str], kept: Collection[str]) -> None:
    others = [member for member in group if member != name]
    why = ""
    if excluded := [member for member in others if member in kept]:
        why = f"and adapter.exclude wants {excluded[0]} to stay as it is"
    elif not {type(layer) for layer in layers} <= TWINS.keys() or type(layers[0]) is not nn.Embedding:
        why = "and only embeddings and linear layers outside the head can share one"
    if why:
        raise InputError(
            "E-TIED",
            f"{name} shares its weight with {', '.join(others)}, so an update of one would be merged into both, {why}: "
            f"leave it out, as by adapter.exclude=[{name}]",
        )


def _merged_into(layer: nn.Module | nn.Parameter) -> list[Any]:
    """The parameters that merging an update of ``layer`` changes."""
    if isinstance(layer, nn.Parameter):
        return [layer]
    return list(layer.parameters()) if isinstance(layer, nn.MultiheadAttention) else [layer.weight]
