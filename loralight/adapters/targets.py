"""The layers that a list of target patterns chooses: presets, names and globs, each of which must match."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loralight.errors import InputError
from loralight.models.quantisation import QuantisedLinear, refuse_packed

Modules = Mapping[str, nn.Module | nn.Parameter]
"""Modules by name that can be adapted: layers, and the weights of experts, which are parameters without a layer."""


def _in_attention(modules: Modules, name: str) -> bool:
    """Whether a layer is an attention or lies in one (transformers and timm both have it in the class name)."""
    if isinstance(modules[name], nn.MultiheadAttention):
        return True
    parents = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
    return any("Attention" in type(modules[parent]).__name__ for parent in parents if parent in modules)


def _in_block(modules: Modules, name: str) -> bool:
    """Whether a layer lies in a block of a stack."""
    parents = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
    return any(isinstance(modules.get(parent), nn.ModuleList | nn.Sequential) for parent in parents)


def _is_linear(modules: Modules, name: str) -> bool:
    return isinstance(modules[name], nn.Linear | Conv1D)  # GPT-2's Conv1D is a linear layer


def _is_output(modules: Modules, name: str) -> bool:
    """Whether a layer is a language model's output layer, which is as large as the embeddings."""
    model = modules.get("")
    return isinstance(model, PreTrainedModel) and model.get_output_embeddings() is modules[name]  # type: ignore[no-untyped-call]


def _is_asked_for(modules: Modules, name: str) -> bool:
    """Whether a layer is chosen only by its name or its own preset."""
    return isinstance(modules[name], nn.Embedding | nn.Parameter)


PRESETS: dict[str, Callable[[Modules, str], bool]] = {
    "all": lambda modules, name: not _is_output(modules, name) and not _is_asked_for(modules, name),
    "all-linear": lambda modules, name: _is_linear(modules, name) and not _is_output(modules, name),
    "all-conv": lambda modules, name: isinstance(modules[name], nn.modules.conv._ConvNd),
    "attention": lambda modules, name: _in_attention(modules, name) and not _is_asked_for(modules, name),
    "mlp": lambda modules, name: (
        _in_block(modules, name) and not _in_attention(modules, name) and not _is_asked_for(modules, name)
    ),
    "embedding": lambda modules, name: isinstance(modules[name], nn.Embedding),
    "experts": lambda modules, name: isinstance(modules[name], nn.Parameter),
}


def _matches(pattern: str, name: str) -> bool:
    """A glob, or a name after ``^``, matches the whole dotted name; a plain name matches its end.

    For example, ``query`` matches ``layer.0.query``.
    """
    if pattern.startswith("^"):
        return name == pattern[1:]
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def match(names: Iterable[str], pattern: str, option: str) -> list[str]:
    """The names that ``pattern`` matches.

    Raises:
        InputError: it matches no name (``E-TARGET-NONE``); the message lists the nearest ones.
    """
    names = list(names)
    if found := [name for name in names if _matches(pattern, name)]:
        return found
    raise InputError(
        "E-TARGET-NONE", f"{option}: {pattern!r} matches no layer that can be adapted. {_nearest(pattern, names)}"
    )


def resolve(
    candidates: Modules,
    targets: str | Sequence[str],
    *,
    types: tuple[type[nn.Module | nn.Parameter], ...],
    exclude: str | Sequence[str] = (),
) -> dict[str, list[str]]:
    """The layers that each target chooses, among those of exactly the given types.

    Other subclasses are left out on purpose, because they may compute something else than the layer they extend. Or
    their weight is used without a call of their forward, as in the output projection of ``nn.MultiheadAttention``,
    which is adapted with its attention layer. `passed_over` lists the layers of the first kind.

    Raises:
        InputError: a target or an exclusion matches nothing (``E-TARGET-NONE``), or everything is excluded; or a target
            chooses quantised layers, which are not among the types (``E-QUANTIZE``).
    """
    layers = [name for name, module in candidates.items() if type(module) in types]
    targets = [targets] if isinstance(targets, str) else targets
    exclude = [exclude] if isinstance(exclude, str) else exclude
    excluded = {name for pattern in exclude for name in match(layers, pattern, "adapter.exclude")}
    hits = {}
    for target in targets:
        means = _meaning(target)
        if QuantisedLinear not in types:
            refuse_packed(candidates, [name for name in candidates if means(candidates, name)])
        found = [name for name in layers if means(candidates, name)]
        if not found:
            _refuse_passed_over(target, passed_over(candidates, {target: []}))
        if target not in PRESETS:
            found = match(layers, target, "adapter.targets")
        hits[target] = [name for name in found if name not in excluded]
        if not hits[target]:
            why = (
                "its layers are all excluded" if found else f"this model has no such layer. {_nearest(target, layers)}"
            )
            raise InputError("E-TARGET-NONE", f"adapter.targets: {target!r} matches nothing: {why}")
    if not hits:
        raise InputError(
            "E-TARGET-NONE", f"adapter.targets is empty; name a preset ({', '.join(PRESETS)}) or a pattern"
        )
    return hits


def passed_over(modules: Modules, adapted: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The layers, by class, that targets choose but that stay as they are because their class extends a known one.

    Args:
        modules: the modules of a model, by name.
        adapted: the model's adapted layers, by target.
    """
    is_adapted = {name for names in adapted.values() for name in names}
    found: dict[str, list[str]] = {}
    for name, module in modules.items():
        if _extends(module) and name not in is_adapted and any(_meaning(each)(modules, name) for each in adapted):
            found.setdefault(type(module).__name__, []).append(name)
    return found


def _extends(module: object) -> bool:
    """Whether a layer's class extends a class that can be adapted.

    Quantised layers are reported elsewhere; the output projection of `nn.MultiheadAttention` is adapted with it.
    """
    others = (QuantisedLinear, NonDynamicallyQuantizableLinear)
    known = (nn.Linear, Conv1D, nn.Embedding, nn.modules.conv._ConvNd)
    exact = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, known) and not isinstance(module, others) and type(module) not in exact


def _refuse_passed_over(target: str, found: Mapping[str, list[str]]) -> None:
    for kind, names in found.items():
        raise InputError(
            "E-TARGET-NONE",
            f"adapter.targets: {target!r} means {names[0]}, a {kind}, which extends a layer that can be adapted, and "
            "may compute something else. Name other layers",
        )


def _meaning(target: str) -> Callable[[Modules, str], bool]:
    return PRESETS[target] if target in PRESETS else _named(target)


def excluding(exclude: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """The patterns of an exclusion, extended by these layers' whole names."""
    return [*([exclude] if isinstance(exclude, str) else exclude), *(f"^{name}" for name in sorted(names))]


def _named(pattern: str) -> Callable[[Modules, str], bool]:
    return lambda _, name: _matches(pattern, name)


def _nearest(pattern: str, names: list[str]) -> str:
    last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    wanted = pattern.rsplit(".", 1)[-1].strip("*") or pattern
    near = (
        get_close_matches(wanted, last, n=5, cutoff=0.4)
        or get_close_matches(pattern, names, n=5, cutoff=0.3)
        or last[:5]
    )
    shown = ", ".join(f"'*.{name}'" if name in last else repr(name) for name in near)
    return (
        f"Nearest: {shown}; presets: {', '.join(PRESETS)}"
        if names
        else "The model has no layer outside its head that can be adapted"
    )
