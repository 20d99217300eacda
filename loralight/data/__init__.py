"""From rows to batches: reading splits, labels, encoding, and the data module that plugins build on."""

from loralight.data.encoding import encode_rows
from loralight.data.labels import (
    are_lists,
    check_smoothing,
    encode_labels,
    is_hidden,
    label_names,
    read_labels,
    weights_of_labels,
)
from loralight.data.module import TaskData
from loralight.data.origin import Origin
from loralight.data.splits import FORMATS, Readers, Splits, check_columns, read_file

__all__ = [
    "FORMATS",
    "Origin",
    "Readers",
    "Splits",
    "TaskData",
    "are_lists",
    "check_columns",
    "check_smoothing",
    "encode_labels",
    "encode_rows",
    "is_hidden",
    "label_names",
    "read_file",
    "read_labels",
    "weights_of_labels",
]
