"""Settings that folders of earlier versions name, and that are gone."""

ARGUMENTS_OF_TASKS = {"gradient_checkpointing", "prepack", "selective_recompute", "unpadded"}
"""Settings that are accelerations now: they change no result, so a folder loads without them."""
