"""The files that a run leaves behind, and the way back from them to a model."""
