"""From rows to batches: reading splits, labels, encoding, and the data module that plugins build on."""

from loralight.data.classes import check_spelling, find_classes
from loralight.data.csv_files import header_hint
from loralight.data.encoding import encode_rows
from loralight.data.labels import (
    are_lists,
    check_smoothing,
    encode_labels,
    is_hidden,
    label_name,
    label_names,
    leave_out_hidden_test,
    read_labels,
    split_labels,
    weights_of_labels,
)
from loralight.data.module import TaskData
from loralight.data.origin import Origin
from loralight.data.seeds import seed_of
from loralight.data.splits import FORMATS, Readers, Splits, check_columns, column_name, read_file

__all__ = [
    "FORMATS",
    "Origin",
    "Readers",
    "Splits",
    "TaskData",
    "are_lists",
    "check_columns",
    "check_smoothing",
    "check_spelling",
    "column_name",
    "encode_labels",
    "encode_rows",
    "find_classes",
    "header_hint",
    "is_hidden",
    "label_name",
    "label_names",
    "leave_out_hidden_test",
    "read_file",
    "read_labels",
    "seed_of",
    "split_labels",
    "weights_of_labels",
]
