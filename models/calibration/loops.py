"""The prior of a running system: closed and open loops on the same step times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qplan.core.deployment import Deployment
from qplan.models.calibration.calibrated import Correction
from qplan.models.calibration.parts import Parts
from qplan.models.calibration.priors import ClosedLoad, ClosedLoopPrior, OpenLoad, OpenLoopPrior
from qplan.models.calibration.steps import corrected_steps
from qplan.models.profiled import Profiled
from qplan.models.steptimes import Ints

Load = ClosedLoad | OpenLoad


class LoopsPrior:
    """Predicts whatever load a row is of; parts of one name mean the same in both kinds of loop."""

    def __init__(self, profiled: Profiled) -> None:
        self.profiled = profiled
        self._closed, self._open = ClosedLoopPrior(profiled), OpenLoopPrior(profiled)

    def __call__(self, rows: Sequence[Load]) -> Mapping[str, Parts]:
        """Return the parts of ``ttft`` and ``tpot``; of an open loop beyond saturation all are infinite.

        Raises
        ------
        InputError
            There are no step times of a row's deployment, or a closed loop has no TPOT.
        """
        closed = [row for row in rows if isinstance(row, ClosedLoad)]
        opened = [row for row in rows if isinstance(row, OpenLoad)]
        # Closed loops first, then open ones: where each row lies in that order.
        kind = np.array([isinstance(row, OpenLoad) for row in rows], dtype=bool)
        place: Ints = np.argsort(np.argsort(kind, kind="stable"))
        by_kind = self._closed(closed), self._open(opened)
        return {
            metric: replace(parts, seconds=np.concatenate([parts.seconds, by_kind[1][metric].seconds])[place])
            for metric, parts in by_kind[0].items()
        }

    def index_of(self, deployment: Deployment) -> int:
        """Return the place of `deployment` in the profile; raise :class:`InputError` where it has none."""
        return self._closed.index_of(deployment)

    def only(self, deployments: Collection[Deployment]) -> LoopsPrior:
        """Return the prior of `deployments` alone, which is quicker to correct."""
        index: Ints = np.array(sorted({self.index_of(one) for one in deployments}), dtype=np.intp)
        found = self.profiled
        return LoopsPrior(
            Profiled(
                tuple(found.deployments[n] for n in index),
                found.steps.take(index),
                tuple(found.provenance[n] for n in index),
            )
        )

    def corrected(self, tpot: Correction) -> LoopsPrior:
        """Return the prior on step times that `tpot` corrects."""
        return LoopsPrior(replace(self.profiled, steps=corrected_steps(self.profiled.steps, tpot)))
