"""What a run leaves behind, and the way back from it to a model."""
