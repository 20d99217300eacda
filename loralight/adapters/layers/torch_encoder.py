"""PyTorch's own encoder layers, whose fused kernel for evaluation reads weights and calls no submodule."""

from typing import Any

from torch import nn

from loralight.adapters.layers.attention import LoraEncoderLinear


def call_parts_(model: nn.Module) -> None:
    """Have encoder layers call their linear layers if these compute more than a product with their weight.

    PyTorch's fused kernel would silently skip an adapter in them; it is not used if there is a hook.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            kinds = {type(module.linear1), type(module.linear2)}
            if kinds - {nn.Linear, LoraEncoderLinear}:
                module.register_forward_pre_hook(_nothing)


def may_fuse_(model: nn.Module) -> None:
    """Undo `call_parts_`."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for number in [number for number, hook in hooks.items() if hook is _nothing]:
            del hooks[number]


def _nothing(module: nn.Module, given: Any) -> None:
    """A hook that does nothing; its presence turns the fused kernel off."""
