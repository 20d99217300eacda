"""Methods of PEFT, injected by PEFT itself (https://github.com/huggingface/peft): an optional extra."""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.layers.lora import LAYERS
from loralight.adapters.methods.low_rank import refuse_tied
from loralight.adapters.peft.config import MAX_RANK, refuse_others, unreadable
from loralight.adapters.peft.layers import kept, plain, same, sample
from loralight.adapters.peft.methods import common, config_class, mapping
from loralight.adapters.targets import PRESETS, resolve
from loralight.annotations import mismatch
from loralight.errors import InputError, did_you_mean
from loralight.models.quantisation import QuantisedLinear

_PLACED = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
_REFUSED = {
    "modules_to_save": "the task's head learns as a whole by itself",
    "inference_mode": "loralight decides which parameters are trainable",
    "megatron_config": "it names modules to import",
    "megatron_core": "it names a module to import",
    **dict.fromkeys(_PLACED, "adapter.targets says which layers"),
}


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Adapter):
    """Replaces layers of a model by PEFT's layers, which keep the plain layers inside.

    The base model's tensors thereby get other names (``query.weight`` becomes ``query.base_layer.weight``) until
    `merge` brings the plain layers back. PEFT's own functions rely on these names, so they are not changed back:
    `keeps_keys` is False.

    Args:
        targets: patterns of the layers to adapt, as in `Lora`; presets choose linear layers and convolutions, other
            patterns any layer with parameters (``*LayerNorm`` for ``LN_TUNING``).
        method: PEFT's ``peft_type``: ``LOHA``, ``LOKR``, ``OFT``, ``BOFT``, ``IA3``, ``LN_TUNING``, ``FOURIERFT``, ...
        arguments: arguments of PEFT's config of this method; the others have PEFT's defaults.
        lr: learning rate per step.
    """

    targets: str | Sequence[str]
    method: str = "LOHA"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 1e-3

    starts_at_base: ClassVar[bool] = False  # most methods do; FOURIERFT begins with random spectra, HRA rounds
    keeps_keys: ClassVar[bool] = False

    def __post_init__(self) -> None:
        kind = config_class(self.method)
        known = {f.name for f in dataclasses.fields(kind)} - _REFUSED.keys()
        hints = get_type_hints(kind)
        for key, value in self.arguments.items():
            where = f"adapter.arguments.{key}"
            if key in _REFUSED:
                raise InputError("E-PEFT", f"{where}: {_REFUSED[key]}; leave it out")
            if key not in known:
                takes = ", ".join(sorted(known - common()))
                raise InputError(
                    "E-PEFT", f"{where}: {self.method} has no such argument.{did_you_mean(key, known)} It has: {takes}"
                )
            if isinstance(value, Mapping) and not _is_pattern(value):
                raise InputError("E-PEFT", f"{where}: {value!r:.80} is no mapping of layers' names to numbers")
            if expected := mismatch(value, hints[key]):
                raise InputError("E-PEFT", f"{where}: {value!r:.80} is not {expected}")
        self._config([])

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        from peft import inject_adapter_in_model

        hits = _hits(candidates, [self.targets] if isinstance(self.targets, str) else self.targets)
        names = list(dict.fromkeys(name for found in hits.values() for name in found))
        refuse_tied(model, names)
        before = {name: sample(candidates[name]) for name in names}
        config = self._config(names)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT reports what it corrects itself, such as fan_in_fan_out
                inject_adapter_in_model(config, model)
        except Exception as error:  # PEFT raises what it likes
            raise InputError(
                "E-PEFT", f"PEFT cannot inject {self.method}: {' '.join(str(error).split())[:300]}"
            ) from error
        if changed := [name for name in names if not same(before[name], sample(plain(model.get_submodule(name))))]:
            raise InputError(
                "E-PEFT", f"{self.method} changes {changed[0]} of the base model itself, which no adapter keeps"
            )
        self._check_what_is_kept(model)
        return hits

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        config: dict[str, Any] = model.peft_config["default"].to_dict()  # type: ignore[index,union-attr]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        theirs = {tensor.data_ptr(): name for name, tensor in kept(model).items()}
        return {name: theirs[p.data_ptr()] for name, p in model.named_parameters() if p.data_ptr() in theirs}

    @classmethod
    def of_folder(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "PeftMethod":
        """The adapter in a PEFT folder, on exactly the layers that have tensors.

        Raises:
            InputError: the method cannot be injected, or a key has a value that is not trusted (``E-PEFT``).
        """
        method = config.get("peft_type")
        kind = config_class(method)
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        refuse_others(config, defaults)
        part = f".{mapping().PEFT_TYPE_TO_PREFIX_MAPPING[method]}"
        layers = dict.fromkeys(name.rpartition(part)[0] for name in tensors if part in name)
        given = {
            key: value for key, value in config.items() if key in defaults and not _says_nothing(value, defaults[key])
        }
        arguments = {key: value for key, value in given.items() if key not in {*common(), *_PLACED, "modules_to_save"}}
        for key, value in arguments.items():
            numbers = value.values() if isinstance(value, Mapping) else [value]
            if any(isinstance(n, int) and abs(n) > MAX_RANK for n in numbers):
                raise unreadable(key, value, f"more than {MAX_RANK} is not believed")
        return cls(targets=[f"^{name}" for name in layers], method=str(method), arguments=arguments)

    def _config(self, names: Sequence[str]) -> Any:
        kind = config_class(self.method)
        # a regular expression, which must match the whole name: listed names also match longer names' ends
        exactly = "|".join(map(re.escape, names)) or "(?!)"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return kind(**self.arguments, target_modules=exactly)
        except Exception as error:  # PEFT raises what it likes
            raise InputError("E-PEFT", f"PEFT refuses adapter.arguments of {self.method}: {error}") from error

    def _check_what_is_kept(self, model: nn.Module) -> None:
        learns = {p.data_ptr() for p in model.parameters() if p.requires_grad}
        if not learns:
            raise InputError("E-NO-TRAINABLE", f"{self.method} of PEFT leaves nothing in the chosen layers to train")
        found = kept(model)
        if more := [name for name, tensor in found.items() if tensor.data_ptr() not in learns]:
            raise InputError(
                "E-PEFT",
                f"{self.method} also keeps tensors that do not learn, such as {more[0]}; no checkpoint holds these",
            )
        if len(found) != len(learns):
            raise InputError(
                "E-PEFT", f"{self.method} shares tensors between layers, or trains some that PEFT does not keep"
            )


def _hits(candidates: Mapping[str, nn.Module], targets: Sequence[str]) -> dict[str, list[str]]:
    parametric = {
        type(module) for module in candidates.values() if next(module.parameters(recurse=False), None) is not None
    } - {QuantisedLinear}  # PEFT would merge into an unpacked copy of the weight
    hits: dict[str, list[str]] = {}
    for target in targets:
        hits |= resolve(candidates, [target], types=tuple(LAYERS) if target in PRESETS else tuple(parametric))
    return hits or resolve(candidates, targets, types=tuple(LAYERS))


def _is_pattern(value: Mapping[str, Any]) -> bool:
    """Whether a mapping maps plain names to numbers; PEFT would take the keys as regular expressions."""
    return all(
        isinstance(key, str)
        and key.removeprefix("^").replace(".", "").replace("_", "").replace("-", "").isalnum()
        and isinstance(number, int | float)
        for key, number in value.items()
    )


def _says_nothing(value: Any, default: Any) -> bool:
    return value is None or value == default or (default is dataclasses.MISSING and not value)
