"""The Hydra config groups of the core."""
