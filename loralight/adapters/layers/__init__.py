"""Layers that hold what a method adds, each made of a plain layer in place."""
