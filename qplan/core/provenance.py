"""Where a number comes from. Every observation and every prediction carries one; there is no default."""

from __future__ import annotations

from enum import StrEnum


class Provenance(StrEnum):
    """How a number came to be, from the hardest evidence to the softest."""

    MEASURED = "measured"
    """Seen end to end on a running engine."""

    KERNEL_COMPOSED = "kernel-composed"
    """Summed from measured kernels; the engine around them was not run."""

    SIMULATED = "simulated"
    """Computed by a simulator or model of the engine."""

    PUBLISHED = "published"
    """Read in a paper, a model card or another document."""
