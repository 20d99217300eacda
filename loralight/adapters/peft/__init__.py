"""PEFT's format and layers: what it calls things, and what of it loralight takes over."""
