"""What a pretrained image model knows of its own classes, by the classifier that it was pretrained with."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loralight.errors import InputError
from loralight.training import AdapterTask, ForgettingProbe, Measured, check_count, lend_

from .backbone import classifiers, load_backbone
from .images import MODES, convert, list_images, open_image
from .module import ImageClassification

_AT_A_TIME = 32  # images


class OwnClasses(ForgettingProbe):
    """The share of images to which the model gives the class, of its own classes, that the base gives: ``agreement``.

    Args:
        images: a folder of any images, or one with a folder of images for each of ``labels``.
        labels: names of the base's own classes, in the order of its outputs; ``accuracy`` is then measured too.
        rows: most images that are read, spread over the folder.

    Raises:
        InputError: there is no image, or ``rows`` is too low (``E-FORGETTING``).
    """

    def __init__(self, *, images: str, labels: list[str] | None = None, rows: int = 200) -> None:
        check_count("rows", rows)
        found = list_images(Path(images).expanduser())
        self.files, self.labels = found[:: max(1, len(found) // rows)][:rows], labels
        if not found:
            raise InputError("E-FORGETTING", f"forgetting.images={images}: there is no image in that folder")
        if labels is not None and (odd := next((one for one in self.files if one.parent.name not in labels), None)):
            raise InputError(
                "E-FORGETTING", f"forgetting.labels: {odd} is in a folder {odd.parent.name}, which is none of {labels}"
            )

    def prepare(self, task: AdapterTask) -> None:
        if not isinstance(task, ImageClassification):
            raise InputError("E-FORGETTING", f"forgetting=classes goes with images, and not with {type(task).__name__}")
        own = task.backbone.config.num_classes
        if not own or (self.labels is not None and len(self.labels) != own):
            given = "" if self.labels is None else f", and forgetting.labels has {len(self.labels)}"
            raise InputError("E-FORGETTING", f"{task.backbone.architecture}: its weights have {own} classes{given}")
        self._model = load_backbone(task.backbone, num_labels=own, image_size=task.image_size)
        lend_(self._model, classifiers(self._model), task)
        self._model.eval()
        mode = MODES[task.preparation["input_size"][0]]
        opened = (convert(open_image(file, str(file)), mode, str(file)) for file in self.files)
        self._images = torch.split(torch.stack([task.transform(image) for image in opened]), _AT_A_TIME)

    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        logits = torch.cat([self._model(images.to(task.device)) for images in self._images])  # (images, classes)
        answers, before = logits.argmax(-1), (logits if base is None else base).argmax(-1)
        scores = {"agreement": _share(answers == before)}
        if self.labels is not None:
            right = torch.tensor([self.labels.index(file.parent.name) for file in self.files], device=logits.device)
            scores |= {"accuracy": _share(answers == right), "loss": float(F.cross_entropy(logits, right))}
        return Measured(scores=scores, outputs=logits)


def _share(is_so: Tensor) -> float:
    return float(is_so.float().mean())
