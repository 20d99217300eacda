"""PEFT's format and layers: its names, and those of its layers that loralight trains."""
