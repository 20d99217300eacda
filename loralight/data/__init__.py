"""From rows to batches: reading splits, labels, encoding, and the data module that plugins build on."""

from typing import TYPE_CHECKING

from loralight.first_use import on_first_use

if TYPE_CHECKING:
    from loralight.data.bars import hiding_bars
    from loralight.data.batching import UsualBatch
    from loralight.data.cautions import cut_rows, few_rows, left_out_rows, odd_names, repeated_rows, uneven_rows
    from loralight.data.charsets import read_text_file
    from loralight.data.class_counts import always_the_commonest, always_the_same, count_classes, counts_line
    from loralight.data.class_folders import files_by_class, list_files
    from loralight.data.classes import Classes, check_spelling, has_no_names, read_classes, strangers
    from loralight.data.columns import missing_hint, replace_column
    from loralight.data.encoding import encode_rows
    from loralight.data.forms.chats import Chat, read_template
    from loralight.data.forms.choosing import columns_of_form, form_of, join_messages_
    from loralight.data.forms.form import Document, Form
    from loralight.data.forms.texts import PlainText, PromptCompletion
    from loralight.data.label_ids import LabelNames, name_label_ids, name_labels, names_beside
    from loralight.data.labels import (
        are_lists,
        check_smoothing,
        check_splits,
        label_name,
        split_labels,
        weights_of_labels,
    )
    from loralight.data.module import TaskData
    from loralight.data.named_files import split_in
    from loralight.data.origin import Origin
    from loralight.data.packing import PackedRows, pack
    from loralight.data.row_digest import digest_of
    from loralight.data.seeds import seed_of
    from loralight.data.splits import FORMATS, Readers, Splits, check_columns, column_name, read_file

__all__ = [
    "FORMATS",
    "Chat",
    "Classes",
    "Document",
    "Form",
    "LabelNames",
    "Origin",
    "PackedRows",
    "PlainText",
    "PromptCompletion",
    "Readers",
    "Splits",
    "TaskData",
    "UsualBatch",
    "always_the_commonest",
    "always_the_same",
    "are_lists",
    "check_columns",
    "check_smoothing",
    "check_spelling",
    "check_splits",
    "column_name",
    "columns_of_form",
    "count_classes",
    "counts_line",
    "cut_rows",
    "digest_of",
    "encode_rows",
    "few_rows",
    "files_by_class",
    "form_of",
    "has_no_names",
    "hiding_bars",
    "join_messages_",
    "label_name",
    "left_out_rows",
    "list_files",
    "missing_hint",
    "name_label_ids",
    "name_labels",
    "names_beside",
    "odd_names",
    "pack",
    "read_classes",
    "read_file",
    "read_template",
    "read_text_file",
    "repeated_rows",
    "replace_column",
    "seed_of",
    "split_in",
    "split_labels",
    "strangers",
    "uneven_rows",
    "weights_of_labels",
]

__getattr__ = on_first_use(
    __name__,
    {
        "bars": "hiding_bars",
        "batching": "UsualBatch",
        "cautions": "cut_rows few_rows left_out_rows odd_names repeated_rows uneven_rows",
        "class_counts": "always_the_commonest always_the_same count_classes counts_line",
        "class_folders": "files_by_class list_files",
        "classes": "Classes check_spelling has_no_names read_classes strangers",
        "columns": "missing_hint replace_column",
        "encoding": "encode_rows",
        "charsets": "read_text_file",
        "forms.chats": "Chat read_template",
        "forms.choosing": "columns_of_form form_of join_messages_",
        "forms.form": "Document Form",
        "forms.texts": "PlainText PromptCompletion",
        "label_ids": "LabelNames name_label_ids name_labels names_beside",
        "labels": "are_lists check_smoothing check_splits label_name split_labels weights_of_labels",
        "module": "TaskData",
        "named_files": "split_in",
        "origin": "Origin",
        "packing": "PackedRows pack",
        "row_digest": "digest_of",
        "seeds": "seed_of",
        "splits": "FORMATS Readers Splits check_columns column_name read_file",
    },
)
