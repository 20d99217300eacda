"""Several adapters on one base: sharing its tensors, rows with adapters of their own, weighted sums."""
