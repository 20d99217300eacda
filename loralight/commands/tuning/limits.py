"""Limits on what a run may take, checked on shapes alone, without weights or training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loralight.commands.estimate import Estimate
from loralight.logs import human


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may take.

    Args:
        parameters: that learn; None for any number.
        memory: estimated bytes, see `Estimate`; None for any amount.
    """

    parameters: int | None
    memory: int | None

    def exceeded(self, config: Mapping[str, Any]) -> str | None:
        """Words on the limit that a run would exceed; None if there is no such limit.

        Args:
            config: of `loralight train`, in plain values.
        """
        if self.parameters is None and self.memory is None:
            return None
        run = Estimate(dict(config))
        if self.parameters is not None and run.num_learning > self.parameters:
            return f"{run.num_learning:,} parameters learn"
        memory = 0 if self.memory is None else sum(run.sizes(run.data.batch_size).values())
        return f"it takes {human(memory)}" if self.memory is not None and memory > self.memory else None
