"""``python -m loralight`` is the command ``loralight``."""

from loralight.cli import main

if __name__ == "__main__":
    main()
