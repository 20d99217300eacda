"""Image classification with a model of timm, such as a ResNet."""

import glob
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from loralight import AdapterTask, Step
from loralight.data import FORMATS, check_smoothing, read_file, weights_of_labels
from loralight.errors import InputError
from loralight.logs import logger
from loralight.models import with_new_parts
from loralight.training import Answers, answers_of_labels, check_temperature, fit_temperature

from .backbone import classifiers, find_backbone, load_backbone, save_backbone
from .confusion import MOST_DRAWN, draw, most_confused, write_table
from .images import MODES, SUFFIXES, convert, list_images, open_image
from .metrics import MacroF1, image_metrics
from .mixing import Mixing
from .transforms import evaluation_transform


class ImageClassification(AdapterTask):
    """A model of timm with a classifier for these labels.

    Batch: images (batch, channels, height, width), labels (batch,).

    Args:
        checkpoint: see `find_backbone`.
        labels: label names, in the order of the classifier's outputs.
        architecture: timm's name of the model, if ``checkpoint`` is a file of weights.
        image_size: pixels, if not the model's own.
        crop_pct: share of the side of an image that is kept in evaluation, if not the model's own.
        image_column: key of the image in records given to `predict`.
        label_counts: images of each label in training; only needed for balanced class weights.
        class_weights: a weight per label in the loss, or ``balanced``: in inverse proportion to ``label_counts``.
        label_smoothing: share of the target that is spread over all labels; like ``mixup`` and ``cutmix`` only in
            training.
        mixup: see `Mixing`.
        cutmix: likewise.
        calibrate: whether to choose the temperature on the validation rows.
        temperature: divides the logits before they become probabilities; 1 if None.
        training: adapter, optimizer, scheduler, ...: see `AdapterTask`.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        labels: Sequence[str],
        architecture: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        image_column: str = "image",
        label_counts: Sequence[int] | None = None,
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        calibrate: bool = False,
        temperature: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.labels, self.image_column, self.image_size = list(labels), image_column, image_size
        self.backbone = find_backbone(checkpoint, architecture)
        self.preparation = self.backbone.preparation(image_size=image_size, crop_pct=crop_pct)
        self.transform = evaluation_transform(self.preparation)
        weights = weights_of_labels(class_weights, self.labels, label_counts)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        check_smoothing(label_smoothing)
        self.calibrate, self.temperature = calibrate, check_temperature(temperature)
        self.label_smoothing = label_smoothing
        self.mixing = None
        if mixup or cutmix:
            self.mixing = Mixing(
                mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing, num_labels=len(self.labels)
            )

    def build_model(self) -> nn.Module:
        return load_backbone(self.backbone, num_labels=len(self.labels), image_size=self.image_size)

    def save_pretrained(self, folder: Path) -> None:
        save_backbone(self.model, self.backbone, folder, labels=self.labels, preparation=self.preparation)

    def head(self, model: nn.Module) -> list[nn.Module]:
        return with_new_parts(model, classifiers(model), self.fresh(model))

    def tiny_batch(self) -> dict[str, Tensor]:
        images = torch.zeros(2, *self.preparation["input_size"])
        return {"images": images, "labels": torch.zeros(2, dtype=torch.long)}

    def metrics(self) -> MetricCollection:
        return image_metrics(len(self.labels))

    def step(self, batch: Mapping[str, Tensor]) -> Step:
        images, labels = batch["images"], batch["labels"]
        targets, smoothing = labels, self.label_smoothing if self.training else 0.0
        if self.training and self.mixing is not None:
            images, targets = self.mixing(images, labels)
            targets, smoothing = targets.to(images.dtype), 0.0  # the targets are smoothed already
        logits = self._train_on(images) if self.training else self.model(images)  # (batch, labels)
        weight = None if self.class_weights is None else _weight_of(targets, self.class_weights)
        total = max(len(labels), 1) if weight is None else weight.clamp(min=1e-12)  # no division by 0
        loss = F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing, reduction="sum")
        return Step(loss / total, logits / self.temperature, labels, weight)

    def answers(self, batch: Mapping[str, Tensor], predictions: Tensor, targets: Tensor) -> Answers:
        return answers_of_labels(predictions, targets, self.labels)

    def settle(self, validated: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """The temperature, if ``calibrate`` is set."""
        if not self.calibrate:
            return {}
        predictions, targets = validated()
        return {"temperature": fit_temperature(self.temperature * predictions, targets)}

    def _train_on(self, images: Tensor) -> Tensor:
        """The logits, or an error with the remedy for a batch of one image."""
        try:
            logits: Tensor = self.model(images)
        except ValueError as error:  # PyTorch's, of BatchNorm
            if len(images) > 1:
                raise
            raise InputError(
                "E-BATCH",
                "the statistics of a BatchNorm cannot be taken from a training batch of one image, where the model "
                "leaves one pixel of it. Set data.batch_size so that no batch of one is left over (and not to 1), a "
                f"larger model.image_size, or task.batch_norm=frozen: {error}",
            ) from error
        return logits

    def on_test_epoch_end(self) -> None:
        """Write the confusion matrix into the run's folder; ``loralight evaluate`` writes none."""
        scores = self.scores["test"]
        assert isinstance(scores, MetricCollection)
        metric = scores["f1"]
        if not isinstance(metric, MacroF1):
            return
        with metric.sync_context():  # over all processes, so each must get here
            confusion = metric.confmat.cpu().clone()
        folder = self.trainer.default_root_dir
        if self.trainer.global_step == 0 or not self.trainer.is_global_zero or folder is None:
            return
        write_table(confusion, self.labels, Path(folder) / "confusion_matrix.csv")
        if worst := most_confused(confusion, self.labels):
            logger.info("most often confused, of all in confusion_matrix.csv: %s", "; ".join(worst))
        if len(self.labels) > MOST_DRAWN:
            return
        try:
            draw(confusion, self.labels, "test split", Path(folder) / "confusion_matrix.png")
        except ModuleNotFoundError:
            logger.info('no picture of the confusion matrix without matplotlib: pip install "loralight[report]"')

    @classmethod
    def read_inputs(cls, source: str) -> list[Any]:
        """Images by name (a file, a folder, a glob, a text file of names, ``-``), or a table's rows with images.

        Raises:
            InputError: there are no images (``E-DATA``), or a file is not an image (``E-IMAGE``).
        """
        path = Path(source).expanduser()
        suffix = path.suffix.lower()
        if suffix in FORMATS and path.is_file():
            return [_beside(row, path.parent) for row in read_file(str(path)).to_list()]
        if path.is_dir():
            found: list[Any] = [str(file) for file in list_images(path)]
        elif suffix in SUFFIXES and path.is_file():
            found = [str(path)]
        elif source == "-" or path.is_file():
            found = _names_in(path, source)
        else:
            found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise InputError(
                "E-DATA",
                f"input={source}: no image there. Give a file ({', '.join(SUFFIXES)}), a folder, a pattern such as "
                "'photos/*.jpg', a text file of names, - for names from standard input, or a table with images",
            )
        for name in found:
            open_image(name, name).close()
        return found

    def predict_batch(self, inputs: Sequence[Any], *, top_k: int = 5) -> list[dict[str, Any]]:
        """The most probable labels of images.

        Args:
            inputs: images, names of files, or records with the data's image column.
            top_k: number of labels that are given with their probabilities, the most probable first.
        """
        if top_k < 1:
            raise InputError("E-INPUT", f"options.top_k={top_k}: give at least 1")
        named = [self._image(given, number) for number, given in enumerate(inputs)]
        images = torch.stack([image for _, image in named]).to(self.device)
        logits = self.model(images).float() / self.temperature
        probabilities, numbers = logits.softmax(-1).topk(min(top_k, len(self.labels)))
        return [
            {
                "file": name,
                "label": self.labels[order[0]],
                "probabilities": {self.labels[n]: round(p, 6) for n, p in zip(order, row, strict=True)},
            }
            for (name, _), order, row in zip(named, numbers.tolist(), probabilities.tolist(), strict=True)
        ]

    def _image(self, given: Any, number: int) -> tuple[str | None, Tensor]:
        """An input's name, if it has one, and its pixels, (channels, height, width)."""
        record = given if isinstance(given, Mapping) else {self.image_column: given}
        if self.image_column not in record:
            raise InputError(
                "E-INPUT",
                f"a record of {', '.join(map(repr, record))}: its image is looked for in {self.image_column!r}",
            )
        source = record[self.image_column]
        name = record.get("file") or _name(source)
        where = name or f"image {number} of the batch"
        mode = MODES[self.preparation["input_size"][0]]
        return name, self.transform(convert(open_image(source, where), mode, where))


def _weight_of(targets: Tensor, weights: Tensor) -> Tensor:
    """The weight of targets: class numbers (batch,), or the share of each label in an image (batch, labels)."""
    return weights[targets].sum() if targets.ndim == 1 else (targets * weights).sum()


def _name(source: Any) -> str | None:
    """The file that an image comes from."""
    if isinstance(source, Mapping):
        source = source.get("path")
    if isinstance(source, str | Path):
        return str(source)
    return getattr(source, "filename", None) or None


def _names_in(path: Path, source: str) -> list[Any]:
    """Names of files in a text file or standard input; relative names may be relative to the text file's folder."""
    try:
        text = sys.stdin.read() if source == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "E-DATA", f"input={source}: neither an image ({', '.join(SUFFIXES)}) nor a text file of names: {error}"
        ) from error
    return [_located(line, path.parent) for line in text.splitlines() if line.strip()]


def _beside(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A table's row, with names of files relative to the table's folder resolved."""
    return {key: _located(value, folder) if isinstance(value, str) else value for key, value in row.items()}


def _located(name: str, folder: Path) -> str:
    return str(folder / name) if not Path(name).exists() and (folder / name).is_file() else name
