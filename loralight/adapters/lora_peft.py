"""What PEFT calls the tensors of LoRA, and where it has no form for them."""

from torch import nn

from loralight.adapters.lora_attention import LoraAttention
from loralight.adapters.lora_embedding import LoraEmbedding
from loralight.adapters.lora_experts import ExpertLowRank, LoraExperts
from loralight.adapters.lora_layers import LoraConv1D, LoraLayer, peft_computes_the_same
from loralight.adapters.lora_slices import SlicedLayer
from loralight.adapters.lora_tied import LoraTwin

_PARTS = ("lora_A", "lora_B")


def peft_has_a_form(model: nn.Module) -> bool:
    """Whether PEFT computes what ``model`` does, given these tensors as they are.

    Its attention layers and fused projections have one A for all of q, k and v; of tied layers it ties those of some
    models only; and beside experts it takes no layer whose weight is (in, out).
    """
    modules = list(model.modules())
    unknown: list[type[nn.Module]] = [LoraAttention, SlicedLayer, LoraTwin]
    if any(isinstance(module, LoraExperts) for module in modules):
        unknown.append(LoraConv1D)
    layers = [module for module in modules if isinstance(module, LoraLayer)]
    plain = all(layer.start is None and peft_computes_the_same(layer) for layer in layers)
    return plain and not any(isinstance(m, tuple(unknown)) for m in modules)


def peft_experts(model: nn.Module) -> dict[str, ExpertLowRank]:
    """The updates of experts' weights, by the weights' names."""
    return {
        f"{name}.{weight}": update
        for name, module in model.named_modules()
        if isinstance(module, LoraExperts)
        for weight, update in module.lora.items()
        if isinstance(update, ExpertLowRank)
    }


def peft_tensor_names(model: nn.Module) -> dict[str, str]:
    """PEFT's names for those tensors that it calls otherwise."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraEmbedding):
            found |= {f"{name}.{part}": f"{name}.{part.replace('lora', 'lora_embedding')}" for part in _PARTS}
        elif isinstance(module, LoraLayer):
            found |= {f"{name}.{part}": f"{name}.{part}.weight" for part in _PARTS}
        elif isinstance(module, LoraExperts):
            found |= _of_experts(name, module)
    return found


def _of_experts(name: str, module: LoraExperts) -> dict[str, str]:
    """PEFT wraps the module once for each weight, in their order: the last is outermost."""
    weights = [weight for weight in module._parameters if weight in module.lora]
    return {
        f"{name}.lora.{weight}.{part}": f"{name}.{'base_layer.' * depth}{part}.weight"
        for depth, weight in enumerate(reversed(weights))
        for part in _PARTS
    }
