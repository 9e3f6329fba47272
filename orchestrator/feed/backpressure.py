"""Backpressure: make block numbers only as readers ask for them.

Ray Data's own policies count bytes, and a number has only eight. Without this policy, the numbers of a whole budget
would be made at once, and each costs milliseconds in the process that also schedules the reading. The interface is
private to Ray's version (2.60); tests check that the policy works. This file does not import torch, so that the
process that runs it starts faster.
"""

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import PhysicalOperator

MOST_WAITING = 16
_MAKES_NUMBERS = "StreamingRepartition"


class FewNumbersWait(BackpressurePolicy):
    """Stops making numbers while ``MOST_WAITING`` of them still wait for a reader."""

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """Return 0 ("read nothing now") while enough numbers wait."""
        if not op.name.startswith(_MAKES_NUMBERS):
            return None
        return 0 if self._topology[op].total_enqueued_output_blocks() >= MOST_WAITING else None


def make_numbers_on_demand(context: DataContext) -> None:
    """Add the policy to a dataset's context."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, FewNumbersWait])
