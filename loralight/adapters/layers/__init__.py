"""Layers with the parameters that a method adds; a plain layer becomes one in place."""
