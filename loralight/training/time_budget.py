"""``budget=10min``: how many optimizer steps fit into a time."""

import re
from dataclasses import dataclass, replace

from loralight.errors import InputError

_UNITS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


def parse_time(given: object) -> float:
    """Seconds of a time such as ``10min``, ``1h30min``, ``90s`` or a plain number of seconds.

    Raises:
        InputError: ``given`` is not a time above 0 (``E-BUDGET``).
    """
    text = str(given).strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|min|m|s)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    elif "".join(number + unit for number, unit in parts) != text:
        seconds = 0.0
    if isinstance(given, bool) or seconds <= 0:
        raise InputError("E-BUDGET", f"budget={given}: give a time such as 10min, 1h30min or 90s")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that parts of a run take.

    Args:
        step: an optimizer step.
        validation: of all validation rows.
        around: everything else: building the model, the linear probe, the last validation, the test.
    """

    step: float
    validation: float
    around: float

    def beside(self, seconds: float) -> "Pace":
        """The same pace, with ``seconds`` added to ``around``."""
        return replace(self, around=self.around + seconds)

    def seconds(self, steps: int, *, validations: int) -> float:
        """Seconds that a run takes."""
        return self.around + steps * self.step + validations * self.validation

    def steps(self, seconds: float, *, of_epoch: int, validated_every: int) -> int:
        """Optimizer steps that a run of ``seconds`` has time for, with its validations.

        Args:
            of_epoch: steps of one epoch.
            validated_every: epochs from one validation to the next.

        Raises:
            InputError: there is not time for a single step (``E-BUDGET``).
        """
        left = seconds - self.around
        steps = int(left / (self.step + self.validation / (of_epoch * validated_every)))
        if steps < of_epoch * validated_every:  # one validation, at the end
            steps = int((left - self.validation) / self.step)
        if steps < 1:
            needed = self.around + self.validation + self.step
            raise InputError(
                "E-BUDGET",
                f"budget: {max(seconds, 0):.0f} s are left for the run, and one of a single step takes {needed:.0f} s. "
                "Give more, or measure less (data.limit_eval_rows=500, probe=false)",
            )
        return steps
