"""Pretrained models: loading, structure, number formats, and quantisation to few bits."""

from loralight.models.budget import Size, at_most
from loralight.models.padding import depends_on_padding, each_length
from loralight.models.pooling import (
    PooledClassifier,
    PoolingChoice,
    check_pooling,
    find_pooling,
    load_encoder,
    load_pooled,
    pool,
)
from loralight.models.pretrained import (
    agree_on_padding_,
    check_causal,
    check_length,
    check_vocabulary,
    load_classifier,
    load_model,
    load_tokenizer,
    new_head,
    num_embeddings,
    pad_,
    tokenise,
    with_new_parts,
)
from loralight.models.shapes import without_weights
from loralight.models.shards import is_sharded
from loralight.models.strangers import read_object
from loralight.models.trust import trust

__all__ = [
    "PooledClassifier",
    "PoolingChoice",
    "Size",
    "agree_on_padding_",
    "at_most",
    "check_causal",
    "check_length",
    "check_pooling",
    "check_vocabulary",
    "depends_on_padding",
    "each_length",
    "find_pooling",
    "is_sharded",
    "load_classifier",
    "load_encoder",
    "load_model",
    "load_pooled",
    "load_tokenizer",
    "new_head",
    "num_embeddings",
    "pad_",
    "pool",
    "read_object",
    "tokenise",
    "trust",
    "with_new_parts",
    "without_weights",
]
