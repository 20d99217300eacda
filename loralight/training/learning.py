"""The trainable part of an adapted model: its names, tensors and layers."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.models.dtypes import tensors_of
from loralight.models.shards import sharded_as, whole_in_first


class Learning:
    """The trainable names, tensors and layers, as optimizer, checkpoints, export and watches all read them here.

    Tensors are looked up at each call, since a method may replace some: AdaLoRA ends as LoRA.

    Args:
        model: the adapted model.
        head: the parts of the model that are trained in full.
        layers: names of the adapted layers.
        norms: names of BatchNorm layers that change although the adapter does not adapt them.
        added: names of the tensors that the adapter added to the base model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: Sequence[nn.Module],
        layers: Sequence[str],
        norms: Sequence[str],
        added: Collection[str],
    ) -> None:
        names = {id(module): name for name, module in model.named_modules()}
        self._model, self.added = model, added
        self.base: str | None = None  # the fingerprint of the base, once processes have only parts of its weights
        self.head, self.norms = head, norms
        self.head_names = [names[id(part)] for part in head]
        self.layers = [*layers, *self.head_names]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        return trainable(self._model)

    @property
    def whole_modules(self) -> list[str]:
        """Names of the modules that are trained in full: the head, and BatchNorm layers outside the adapter."""
        return [*self.head_names, *self.norms]

    def tensors(self) -> dict[str, Tensor]:
        """Trainable parameters, and saved buffers of the modules that hold them, by name."""
        state = self._model.state_dict()
        names = self.parameters
        owners = {name.rpartition(".")[0] for name in names} | set(self.norms)
        buffers = {
            name for name, _ in self._model.named_buffers() if name.rpartition(".")[0] in owners and name in state
        }
        return {name: tensor for name, tensor in state.items() if name in names or name in buffers}

    def load_(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Load exactly `tensors`; raises like `check`."""
        self.check(tensors, origin)
        own = self.tensors()
        sharded = {name: sharded_as(tensor, own[name]) for name, tensor in tensors.items()}
        self._model.load_state_dict(sharded, strict=False)

    def gather_(self, rank: int) -> None:
        """Replace what the processes hold parts of by the whole, in the first process, which then saves it.

        All processes call this, and none computes with the model afterwards.
        """
        gathered: dict[int, nn.Parameter] = {}  # layers that share a parameter still do
        for module in self._model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not (parameter.requires_grad and isinstance(parameter, DTensor)):
                    continue
                if id(parameter) not in gathered:
                    gathered[id(parameter)] = nn.Parameter(whole_in_first(parameter, rank))
                if rank == 0:
                    module.register_parameter(name, gathered[id(parameter)])

    def check(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Check that names and shapes are those of `tensors`; the given tensors may be on the device ``meta``.

        Args:
            tensors: by name.
            origin: where the tensors come from, for the message.

        Raises:
            InputError: a tensor is missing, unknown or of another shape (``E-ADAPTER-KEYS``).
        """
        expected = self.tensors()
        wrong = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
        wrong += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
        wrong += [
            f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & tensors.keys())
            if tensors[name].shape != expected[name].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise InputError(
                "E-ADAPTER-KEYS", f"{origin} does not fit this model and adapter: {'; '.join(wrong[:3])}{more}"
            )

    @property
    def new(self) -> set[str]:
        """Names of the tensors that the base model does not have: the adapter's and the head's."""
        in_head = {id(tensor) for part in self.head for tensor in tensors_of(part).values()}
        return {*self.added, *(name for name, one in tensors_of(self._model).items() if id(one) in in_head)}
