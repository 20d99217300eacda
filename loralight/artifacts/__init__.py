"""The files that a run writes, and loading a model from them."""
