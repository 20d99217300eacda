"""Pretrained models of timm, from timm's names, the hub, a folder or a file of weights; and their input format."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.data.config import resolve_data_config
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    get_pretrained_cfg,
    load_model_config_from_hf,
    load_state_dict,
    parse_model_name,
    save_for_hf,
)
from torch import Tensor, nn

from loralight.errors import InputError, did_you_mean
from loralight.models import Size, at_most, read_object, trust, without_weights
from loralight.resources import resolve

from .images import MODES

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_OF_TIMM = {*signature(timm.create_model).parameters, *signature(build_model_with_cfg).parameters}
"""Arguments on where weights come from or how a model is built, not on its structure."""
_MOST_PIXELS = 4096  # on a side
_NOWHERE: dict[str, Any] = {
    "url": None,
    "hf_hub_id": None,
    "hf_hub_filename": None,
    "source": None,
    "state_dict": None,
    "file": None,
    "custom_load": False,
}
"""Fields of timm's config on where weights are; values from a stranger's config are not trusted."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model of timm whose weights are not loaded yet.

    Args:
        architecture: timm's name.
        config: the place of the weights, and the preparation of the images that they were trained on.
        arguments: arguments of ``timm.create_model`` that the weights need.
        most: the largest size that the model may have.
    """

    architecture: str
    config: PretrainedCfg
    arguments: dict[str, Any] = field(default_factory=dict)
    most: Size = Size(tensors=200_000, values=2**34)  # noqa: RUF009  # nothing changes a tuple

    def preparation(self, *, image_size: int | None = None, crop_pct: float | None = None) -> dict[str, Any]:
        """The data config of timm: input size (channels, height, width), mean, std, interpolation and crop.

        Args:
            image_size: pixels, if not the model's own.
            crop_pct: share of the side of an image that is kept, if not the model's own.

        Raises:
            InputError: images cannot be prepared in this way (``E-IMAGE-SIZE``, ``E-MODEL``).
        """
        if image_size is not None and image_size < 1:
            raise InputError("E-IMAGE-SIZE", f"model.image_size={image_size}: give a number of pixels, such as 224")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise InputError("E-IMAGE-SIZE", f"model.crop_pct={crop_pct}: give a share above 0, and up to 1")
        channels = self.config.input_size[0]
        if channels not in MODES:
            raise InputError("E-MODEL", f"{self.architecture} takes images of {channels} channels; give one of 1 or 3")
        size = self.config.input_size if image_size is None else (channels, image_size, image_size)
        if not all(isinstance(pixels, int) and 0 < pixels <= _MOST_PIXELS for pixels in size):
            raise InputError("E-IMAGE-SIZE", f"no images of {size}: a side has 1 to {_MOST_PIXELS:,} pixels")
        given = {"input_size": size, "crop_pct": crop_pct}
        return dict(resolve_data_config(given, pretrained_cfg=asdict(self.config)))  # type: ignore[no-untyped-call]


def find_backbone(checkpoint: str, architecture: str | None = None) -> Backbone:
    """The model that ``model.checkpoint`` names.

    Args:
        checkpoint: a name of timm (``resnet18``, ``resnet50.a1_in1k``), ``hf_hub:name``, a folder with ``config.json``
            and ``model.safetensors``, or a ``.safetensors`` file.
        architecture: timm's name of the model, if ``checkpoint`` is a file of weights.

    Raises:
        InputError: there is no such model (``E-MODEL``).
    """
    place = Path(resolve(checkpoint))
    is_file = place.suffix == ".safetensors" or place.suffix in _PICKLES
    if architecture is not None and not is_file:
        raise _error(checkpoint, "model.architecture goes with a .safetensors file; leave it out")
    with _one_message(checkpoint):
        if place.is_dir():
            return _in_folder(place)
        if is_file:
            return _in_file(place, architecture)
        if checkpoint.startswith(("/", ".", "~")):
            raise _error(checkpoint, "there is no such folder or file")
        source, name = parse_model_name(checkpoint)
        if source == "hf-hub":
            config, name, arguments = load_model_config_from_hf(name)
            # the file that timm would choose may be a pickle
            file = None if trust().allow_pickle else "model.safetensors"
            found = replace(_config(config), **{**_NOWHERE, "hf_hub_filename": file})
            found = replace(found, hf_hub_id=config["hf_hub_id"], source=config["source"])
            return Backbone(architecture=_known(name), config=found, arguments=_arguments_of_model(arguments))
        known = _known(name.partition(".")[0])
        config = get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise _error(checkpoint, "timm has no pretrained weights of this model")
        return Backbone(architecture=known, config=config)


def load_backbone(backbone: Backbone, *, num_labels: int, image_size: int | None = None) -> nn.Module:
    """The model with its weights; its classifier is new if the number of labels differs.

    Raises:
        InputError: the weights cannot be loaded or do not fit (``E-MODEL``), or images of ``image_size`` do not fit the
            model (``E-IMAGE-SIZE``).
    """
    config, arguments = backbone.config, _arguments(backbone, image_size)
    with _one_message(config.file or backbone.architecture):
        # with the weights' own number of classes, timm loads them strictly
        arguments["num_classes"] = config.num_classes
        error = _error(config.file or backbone.architecture, "its config describes a far larger model than its weights")
        with at_most(backbone.most, error):
            model: nn.Module = timm.create_model(
                backbone.architecture, pretrained=not without_weights(), pretrained_cfg=config, **arguments
            )
    if config.num_classes != num_labels:
        model.reset_classifier(num_labels)  # type: ignore[operator]
    _try(model, backbone.preparation(image_size=image_size)["input_size"])
    return model


def save_backbone(
    model: nn.Module, backbone: Backbone, folder: Path, *, labels: Sequence[str], preparation: Mapping[str, Any]
) -> None:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and `find_backbone` can load.

    Args:
        model: made by `load_backbone`, without adapters.
        backbone: the backbone it was made from.
        folder: an existing folder.
        labels: names of the classes.
        preparation: preparation of the images, see `Backbone.preparation`.
    """
    settings = {"label_names": list(labels), "pretrained_cfg": dict(preparation)}
    arguments = {**_arguments(backbone, preparation["input_size"][-1]), "num_classes": len(labels)}
    hook = model.register_state_dict_post_hook(_keep_apart_)  # type: ignore[no-untyped-call]
    try:
        save_for_hf(model, str(folder), model_config=settings, model_args=arguments, safe_serialization=True)
    finally:
        hook.remove()


def _keep_apart_(_: nn.Module, state: dict[str, Tensor], *__: Any) -> None:
    """Copy tensors that layers share, as CoaT's do: in a file of safetensors each has its own."""
    seen = set[int]()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _arguments(backbone: Backbone, image_size: int | None) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` for images of a size in pixels; None for the model's own size."""
    sized = image_size is not None and backbone.config.fixed_input_size
    return {**backbone.arguments, **({"img_size": image_size} if sized else {})}


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The head of a timm model; some have two."""
    found = model.get_classifier()  # type: ignore[operator]
    return list(found) if isinstance(found, tuple | list) else [found]


@torch.inference_mode()
def _try(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Check by one grey image that a model takes images of a size; each architecture has its own conditions."""
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, *input_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            "E-IMAGE-SIZE",
            f"no images of {input_size} (channels, height, width) for this model: {reason[:200]}. Set model.image_size",
        ) from error
    finally:
        model.train(was_training)


def _in_folder(folder: Path) -> Backbone:
    """A folder in the format of timm's hub; unlike in timm, unknown keys in its config are ignored."""
    content = read_object(folder / "config.json")
    settings = {**content, **content.get("pretrained_cfg", {})}
    return _in_file(folder / "model.safetensors", content.get("architecture"), settings, content.get("model_args", {}))


def _in_file(
    file: Path,
    architecture: str | None,
    settings: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> Backbone:
    if file.suffix in _PICKLES and not trust().allow_pickle:
        raise InputError(
            "E-PICKLE",
            f"model.checkpoint={file}: reading a pickle can do harm. Convert it, as by safetensors.torch.save_file("
            "torch.load(file, weights_only=True), 'model.safetensors'), or if you trust it, say "
            "model.allow_pickle=true: of the pickle only tensors are read then",
        )
    if not (file.is_file() or without_weights()):
        raise _error(str(file), "there is no such file")
    if architecture is None:
        raise _error(
            str(file), "of which model are these weights? Set model.architecture to timm's name, such as resnet18"
        )
    usual = get_pretrained_cfg(_known(architecture)) or PretrainedCfg()
    config = usual if settings is None else _config(settings, classifier=usual.classifier, first_conv=usual.first_conv)
    labels = {"label_names": None, "label_descriptions": None}  # the model will have other classes
    config = replace(config, **{**_NOWHERE, **labels, "file": str(file)}, fixed_input_size=usual.fixed_input_size)
    chosen = _arguments_of_model(arguments or {})
    if without_weights():
        return Backbone(architecture=architecture, config=config, arguments=chosen)
    shapes = _shapes(file)
    values = sum(math.prod(shape) for shape in shapes.values())
    return Backbone(
        architecture=architecture,
        config=replace(config, num_classes=_num_classes(shapes, config.classifier)),
        arguments=chosen,
        most=Size(8 * len(shapes) + 2_000, 4 * values + 100_000_000),
    )


def _arguments_of_model(given: dict[str, Any]) -> dict[str, Any]:
    if odd := [key for key in given if key in _OF_TIMM]:
        raise InputError("E-MODEL", f"config.json: model_args: {odd[0]!r} is no argument of a model; leave it out")
    return dict(given)


def _shapes(file: Path) -> dict[str, Sequence[int]]:
    """The shapes of the tensors in a file of weights."""
    if file.suffix in _PICKLES:
        return {name: tensor.shape for name, tensor in load_state_dict(str(file), weights_only=True).items()}
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118  # no mapping


def _num_classes(shapes: Mapping[str, Sequence[int]], classifier: Any) -> int:
    """The number of classes of the weights' classifier; 0 if they have none."""
    name = classifier if isinstance(classifier, str) or not classifier else classifier[0]
    return int(shapes.get(f"{name}.weight", [0])[0])


def _config(settings: dict[str, Any], **structure: Any) -> PretrainedCfg:
    """A model's record in timm: the ``settings`` that timm knows, and fields of ``structure`` that these lack."""
    known = {one.name for one in fields(PretrainedCfg)}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key in known}
    return PretrainedCfg(**{**structure, **given})


def _known(architecture: str) -> str:
    if not timm.is_model(architecture):
        raise InputError(
            "E-MODEL",
            f"timm has no model {architecture!r}.{did_you_mean(architecture, timm.list_models())} model.checkpoint "
            "takes timm's name of a model, hf_hub:name, a folder with config.json and model.safetensors, or a "
            ".safetensors file together with model.architecture",
        )
    return architecture


def _error(checkpoint: str, reason: str) -> InputError:
    return InputError("E-MODEL", f"model.checkpoint={checkpoint}: {reason}")


@contextmanager
def _one_message(checkpoint: str) -> Iterator[None]:
    """Turn errors of timm, the hub's client and safetensors into one message, and silence timm's logs."""
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a stranger's config may make timm raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        hint = "" if Path(resolve(checkpoint)).exists() else ". The hub needs network access, or a copy in its cache"
        raise _error(checkpoint, f"cannot be loaded: {reason[:300]}{hint}") from error
    finally:
        log.setLevel(level)
