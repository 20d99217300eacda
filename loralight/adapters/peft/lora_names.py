"""PEFT's names of LoRA's tensors, and the cases in which PEFT has no form for them."""

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from loralight.adapters.layers.experts import ExpertLowRank, LoraExperts
from loralight.adapters.layers.lora import LoraLayer, LoraLinear, LoraProduct
from loralight.adapters.layers.parameters import LoraParameters

_PARTS = ("lora_A", "lora_B")
_OF_MAMBA = ("out_proj", "conv1d")  # layers that PEFT refuses in these models, as their kernels read the weight
_MAMBAS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # to PEFT these are parts of experts


def peft_has_a_form(model: nn.Module) -> bool:
    """Whether PEFT computes the same as ``model``, given the same tensors.

    PEFT's attention layers and fused projections have a single A for q, k and v. It ties tied layers in some models
    only. Next to experts it takes no layer whose weight is (in, out). Weights that it targets by their own names must
    be those of linear layers, without dropout. It refuses some layers of Mamba.
    """
    modules = list(model.modules())
    layers = [module for module in modules if isinstance(module, LoraLayer)]
    parameters = [module for module in modules if isinstance(module, LoraParameters)]
    transposed = any(isinstance(layer, LoraProduct) and layer.weight_is_transposed for layer in layers)
    named = all(type(layer) is LoraLinear and not layer.lora_dropout for layer in peft_by_weight(model).values())
    known = all(layer.is_known_to_peft for layer in layers) and all(module.has_peft_form for module in parameters)
    is_mixed = transposed and any(isinstance(module, LoraExperts) for module in parameters)
    return known and named and not is_mixed and not _refused_by_name(model)


def _refused_by_name(model: nn.Module) -> bool:
    """Whether PEFT refuses a layer because of its name and the type of its model."""
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in _MAMBAS:
        return False
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    return any(name.rpartition(".")[2] in _OF_MAMBA for name in layers)


def peft_by_weight(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers outside a mixture's experts with names that parts of experts had in transformers 4.

    PEFT takes a layer of such a name for these parts, and adapts all experts in its place. A weight that is targeted by
    its own name is adapted as it is.
    """
    if not _had_experts_of_layers(model):
        return {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in _OF_EXPERTS}


def _had_experts_of_layers(model: nn.Module) -> bool:
    """Whether transformers joins the weights of many layers to a mixture's weights on loading."""
    if not isinstance(model, PreTrainedModel):
        return False
    conversions = get_checkpoint_conversion_mapping(model.config.model_type) or []  # type: ignore[no-untyped-call]
    return any("experts" in target for conversion in conversions for target in conversion.target_patterns)


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
    """PEFT's names for those tensors whose names differ from the model's."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            found |= {f"{name}.{part}": f"{name}.{theirs}" for part, theirs in module.peft_parts.items()}
        elif isinstance(module, LoraExperts):
            found |= _of_experts(name, module)
    return found


def _of_experts(name: str, module: LoraExperts) -> dict[str, str]:
    """PEFT's names for the updates of experts: it wraps the module once for each weight, the last one outermost."""
    weights = [weight for weight in module._parameters if weight in module.lora]
    return {
        f"{name}.lora.{weight}.{part}": f"{name}.{'base_layer.' * depth}{part}.weight"
        for depth, weight in enumerate(reversed(weights))
        for part in _PARTS
    }
