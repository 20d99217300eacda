"""PEFT's format and layers: its names, and the layers of its own that loralight trains."""
