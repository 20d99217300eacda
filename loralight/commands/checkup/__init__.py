"""The checks of ``loralight doctor``: each is a small function that looks at one thing of this machine."""
