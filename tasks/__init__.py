"""The task plugins of loralight, each with the layout of any other plugin."""
