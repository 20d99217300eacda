"""The layers that a task's loss never reads, found by backward passes on a tiny batch before training.

Such layers would learn nothing: for example a pooler whose output the head ignores, or a layer for another kind of
input.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from loralight.adapters.base import Adapter
from loralight.adapters.targets import PRESETS
from loralight.errors import InputError
from loralight.logs import logger
from loralight.training.gradients import layer_of
from loralight.training.learning import Learning

Loss = Callable[[], Tensor | None]

_PASSES = 8  # so that a layer that training skips at random takes part in at least one
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def unread_layers(
    model: nn.Module, learning: Learning, adapter: Adapter, adapted: Mapping[str, Collection[str]], loss: Loss
) -> list[str]:
    """Names of the adapted layers that presets chose and that the loss never reads.

    A layer that is not called still counts as read if layers with the same name but for numbers are read: it may be an
    expert in a mixture of experts, which other data will use.

    Args:
        model: adapted, in training mode.
        learning: its trainable part.
        adapter: the method.
        adapted: the adapted layers by target.
        loss: computes the loss of a tiny batch; returns None if there is no such batch.

    Raises:
        InputError: the loss never reads a layer that the user has named, or the model's code cuts all layers' gradients
            off (``E-UNREACHED``).
    """
    if adapter.without(()) is None:  # no layer could be left out
        return []
    learn = {layer_of(name, learning.layers) for name in learning.parameters}  # no norms that only track statistics
    names = {name for found in adapted.values() for name in found if name in learn}
    found = _passes(model, learning, names, loss)
    if found is None:
        return []
    read, called = found
    alike = {_NUMBER.sub("*", name) for name in read}
    unread = {name for name in names - read if name in called or _NUMBER.sub("*", name) not in alike}
    by_name = {name for pattern, chosen in adapted.items() if pattern not in PRESETS for name in chosen}
    if unread & by_name:
        refuse_unread(adapter, unread & by_name, adapted)
    if names and unread == names <= called:
        raise InputError(
            "E-UNREACHED",
            f"no gradient reaches any of the {len(names)} layers that adapter.targets chooses, such as {min(names)}, "
            "though the model calls them all: its code computes no gradients behind inputs that need none. Train all "
            "of it, with adapter=full, or give another model.checkpoint",
        )
    return sorted(unread)


def refuse_unread(adapter: Adapter, unread: Collection[str], adapted: Mapping[str, Collection[str]]) -> None:
    """Raise ``E-UNREACHED`` with the setting that leaves these layers out, where the method has one.

    Args:
        adapter: of the run.
        unread: adapted layers, or parameters of the head.
        adapted: the adapted layers by target.
    """
    more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
    raise InputError(
        "E-UNREACHED",
        f"no gradient reaches {', '.join(sorted(unread)[:5])}{more}: the task's step never uses them; "
        f"{_remedy(adapter, unread, adapted)}",
    )


def _remedy(adapter: Adapter, unread: Collection[str], adapted: Mapping[str, Collection[str]]) -> str:
    layers = {name for found in adapted.values() for name in found}
    if not layers >= set(unread) or adapter.without(()) is None:
        return "exclude them, or freeze them"
    if idle := [target for target, found in adapted.items() if set(found) <= set(unread)]:
        return f"leave {', '.join(map(repr, idle))} out of adapter.targets"
    return f"set adapter.exclude='[{', '.join(patterns(unread, layers))}]'"


def patterns(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """A few patterns that match exactly the ``chosen`` among ``names``; ``*`` replaces numbers where that is exact."""
    together: dict[str, set[str]] = {}
    for name in names:
        together.setdefault(_NUMBER.sub("*", name), set()).add(name)
    found: dict[str, None] = {}
    for name in sorted(chosen):
        pattern = _NUMBER.sub("*", name)
        found["^" + name if pattern == name or not together[pattern] <= set(chosen) else pattern] = None
    return list(found)


def _passes(model: nn.Module, learning: Learning, names: set[str], loss: Loss) -> tuple[set[str], set[str]] | None:
    """The layers that a gradient reaches, and those that are called; None if this cannot be found out."""
    read, moved = set[str](), set[str]()
    parameters = learning.parameters
    owners = [layer_of(name, learning.layers) for name in parameters]
    try:
        on_gpu = any(parameter.is_cuda for parameter in parameters.values())
        with _undone(model, on_gpu), torch.enable_grad(), _calls(model, names) as called:
            for number in range(_PASSES):
                torch.manual_seed(number)
                if (value := loss()) is None:
                    return None
                if value.requires_grad:
                    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                    present = [(name, one) for name, one in zip(owners, gradients, strict=True) if one is not None]
                    read |= {owner for owner, _ in present}
                    moved |= {owner for owner, gradient in present if gradient.any()}
                if names <= moved:
                    break
    except Exception as error:  # from a model's own code; the first training step checks again
        logger.debug("layers that the loss never reads are not looked for: %s", error)
        return None
    return read - _muted(read, moved, names), called


def _muted(read: set[str], moved: set[str], names: set[str]) -> set[str]:
    """The adapted layers whose gradient is always 0, such as that of a projection of images which texts do not have.

    One in a list of blocks is left, as its block may begin as an identity, unless it is `_idle_at_the_end`. And so are
    all if no gradient comes through the head, which then begins at 0.
    """
    if not moved & names:
        return set()
    still = (read & names) - moved
    return {name for name in still if not _NUMBER.search(name) or _idle_at_the_end(name, moved, names)}


def _idle_at_the_end(name: str, moved: set[str], names: set[str]) -> bool:
    """Whether a layer of the last block has a gradient of 0, though others of the block and those before it learn.

    The head of a Longformer reads the first token alone, for which the last block has other projections than for the
    rest. An expert of a mixture has the same gradient if no token came to it, but then none of its layers learns.
    """
    first = _NUMBER.search(name)
    assert first
    blocks, layer = name[: first.start()], name[first.end() :]
    alike = re.compile(rf"{re.escape(blocks)}(\d+){re.escape(layer)}")
    before = {other: int(found[1]) for other in names if other != name and (found := alike.fullmatch(other))}
    learns_beside = any(other.startswith(f"{blocks}{first[0]}.") for other in moved & names)
    is_last = bool(before) and max(before.values()) < int(first[0])
    return is_last and learns_beside and before.keys() <= moved and not _NUMBER.search(layer)


@contextmanager
def _undone(model: nn.Module, on_gpu: bool) -> Iterator[None]:
    """A context that restores random states, and buffers such as a BatchNorm's statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with isolate_rng(include_cuda=on_gpu):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, kept in before:
                    buffer.copy_(kept)


@contextmanager
def _calls(model: nn.Module, names: set[str]) -> Iterator[set[str]]:
    """A context in which the names of those modules that are called are collected."""
    called: set[str] = set()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name in names:
                hooks.callback(module.register_forward_hook(lambda *_, name=name: called.add(name)).remove)
        yield called
