"""Which tasks can shard their weights over the processes (``trainer=fsdp``), and why others cannot."""

from collections.abc import Sequence

from torch import nn

from loralight.adapters.base import Adapter
from loralight.errors import InputError
from loralight.training.task import AdapterTask


def check_can_be_sharded(task: AdapterTask) -> None:
    """Check, before anything is sharded, that a task's weights can be.

    Raises:
        InputError: the adapter or the task uses whole weights outside of a block's passes, or the model is compiled
            (``E-FSDP``).
    """
    model, adapter = task.model, task.adapter
    refuse_whole_weights(adapter, task.quantize)
    if adapter.penalty(model) is not None:
        raise _refused(
            f"{type(adapter).__name__} adds a penalty on whole weights to the loss, and outside of a block's passes a "
            "process has only parts of them; switch it off"
        )
    if scalars := [name for name, p in task.learning.parameters.items() if p.ndim == 0]:
        raise _refused(f"{scalars[0]} learns and is a single number, which cannot be sharded; make it a vector")
    if model._compiled_call_impl is not None:
        raise _refused("a compiled model would have to gather its weights inside the compiled code; set compile=false")
    _refuse_shared(task.gathered_apart(model), model)


def refuse_whole_weights(adapter: Adapter, quantize: str | None) -> None:
    """Raise ``E-FSDP`` if settings alone tell that whole weights are needed.

    Args:
        adapter: a method that changes the model after each step takes whole weights and gradients.
        quantize: the task's; a packed weight is unpacked as a whole.
    """
    if type(adapter).after_step_ is not Adapter.after_step_:
        raise _refused(
            f"{type(adapter).__name__} changes weights by their whole gradients after each step, and a process has "
            "only parts of them; take another method, such as adapter=lora"
        )
    if quantize is not None:
        raise _refused(
            f"task.quantize={quantize} packs weights that are then unpacked as a whole, and a process has only parts "
            "of them; take task.quantize=null, or a trainer that keeps whole weights, such as trainer=ddp"
        )


def check_groups(apart: Sequence[nn.Module], model: nn.Module) -> None:
    """Raise ``E-FSDP`` if weights that are gathered together learn in several dtypes: their gradients are one message.

    Args:
        apart: the modules that are gathered one at a time; what is outside of them is gathered with the model.
        model: as it will be trained.
    """
    for group in gathered_together(apart, model):
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in group if p.requires_grad})
        if len(dtypes) > 1:
            raise _refused(
                f"weights that are gathered together learn in {' and '.join(dtypes)}, as trainer.precision casts those "
                "of the base and no new ones; take trainer.precision=32-true or bf16-mixed, or an adapter that adds "
                "parameters, such as lora"
            )


def gathered_together(apart: Sequence[nn.Module], model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters that are gathered for the whole step, then those of each module that is gathered by itself."""
    inside = {parameter for module in apart for parameter in module.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in inside]
    return [rest, *(list(module.parameters()) for module in apart)]


def never_sharded(task: AdapterTask) -> set[nn.Parameter]:
    """The parameters that each process keeps as a whole: single numbers, and those of metrics."""
    model = set(task.model.parameters())
    return {parameter for parameter in task.parameters() if parameter.ndim == 0 or parameter not in model}


def _refuse_shared(apart: Sequence[nn.Module], model: nn.Module) -> None:
    """Raise ``E-FSDP`` if a parameter belongs to two blocks, or to a block and to what is outside of all blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    inside = {id(module): names[id(block)] for block in apart for module in block.modules()}
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            block = inside.get(id(module), "the rest of the model")
            if owner.setdefault(id(parameter), block) != block:
                raise _refused(
                    f"{name}.{key} is shared by {owner[id(parameter)]} and {block}, which are gathered apart; have the "
                    "task's gathered_apart() leave these blocks out"
                )


def _refused(why: str) -> InputError:
    return InputError("E-FSDP", f"trainer=fsdp: {why}")
