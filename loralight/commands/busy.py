"""``python -m loralight.commands.busy WORDS``: training steps of these settings until the process that asked has ended.

While a run is timed, such processes load the machine as the runs beside it will. The first line printed is a sign that
the steps have begun.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loralight.commands.trial import Trial, batches
from loralight.config.composition import settings_of
from loralight.config.own_data import with_own_data


def main(words: Sequence[str]) -> None:
    """Train by the overrides ``words``, and save nothing."""
    asked_by = os.getppid()
    trial = Trial(settings_of("train", with_own_data(list(words)), Path()))
    for number, batch in enumerate(batches(trial.data)):
        trial.step(batch)
        if number == 0:
            print("busy", flush=True)
        if os.getppid() != asked_by:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
