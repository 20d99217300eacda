"""What the base model could do before training, and what it can still do afterwards."""
