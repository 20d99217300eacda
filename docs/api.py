"""Writes what the rooms show as pages, from the docstrings: `make docs`, or `python docs/api.py [FOLDER]`."""

import sys
import warnings
from pathlib import Path

import pdoc

import loralight
import loralight.data
import loralight.training

ROOMS = ("acceleration", "adapters", "data", "kernels", "models", "testing", "training")
# Modules called like a function that the room shows; pdoc would write a page for each.
HIDDEN = ("!loralight.adapters.disabled", "!loralight.adapters.inject", "!loralight.models.trust")


def write(folder: Path) -> None:
    """Write ``index.html``, and a page for the package and for each room; what pdoc would warn of is an error."""
    warnings.filterwarnings("error", module="pdoc")
    for face in (loralight, loralight.data, loralight.training):
        for name in face.__all__:
            setattr(face, name, getattr(face, name))  # imported on first use, of which pdoc knows nothing
    loralight.__all__ += ROOMS  # pdoc goes to those modules inside a package that it names
    pdoc.render.configure(docformat="google", footer_text=f"loralight {loralight.__version__}")
    pdoc.pdoc("loralight", *HIDDEN, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "build/api"))
