"""Several adapters on one base: sharing its tensors, an adapter for each row, weighted sums."""
