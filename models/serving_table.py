"""The serving model tabulated over load: a million predictions a second, with a checked error.

The serving model solves for each percentile by bisection, which is too slow where the same deployments are asked at
very many loads. Its answers are smooth curves over the *utilisation* ``u = rate / stable rate``: flat when idle, in
proportion to ``1 / (1 - u)`` near saturation. Over ``x = ln(u / (1 - u))`` both ends are gentle, so the curves are
read from points of ``x``, linearly. Points are added halfway between their neighbours until the model itself, asked
there, differs from the table by no more than the tolerance; the point asked then joins the table.

Reading keeps what the points have: a quantity that never falls with load never falls in the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.workload import Workload
from qplan.models.power.energy import energy
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Bools, Floats, Ints, StepTimes

QUANTITIES = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "power_w")
TOLERANCE = 0.002  # relative, where the model is asked
LEAST_X, GREATEST_X = -14.0, 10.0  # utilisations from 8e-7 to 0.99995
START_STEP, FINEST_STEP = 1 / 16, 1 / 1024  # a coarser start misses kinks that hide between its points
STRIDE = 64.0  # between the points of two deployments on one common axis
RISE = 0.01  # relative; within less of it a monotone curve cannot stray far
CHUNK = 1024  # points for which the model is asked at a time

_NAME = re.compile(r"(ttft|tpot|e2e)_(?:mean|p(\d+(?:\.\d+)?))")


@dataclass(frozen=True, slots=True, eq=False)
class ServingTable:
    """Q quantities of D deployments, each at points of its own, K in all.

    Attributes
    ----------
    quantities : (Q,)
        Names, such as ``ttft_p90`` and ``tpot_mean`` in seconds, ``power_w`` in watts of a replica.
    stable_qps : (D,)
        Rate up to which a replica is stable; 0 where it cannot serve the workload.
    start : (D + 1,)
        Where the points of each deployment begin.
    axis : (K,)
        ``ln(u / (1 - u))`` of the points' utilisations plus :data:`STRIDE` for each deployment before: rising.
    values : (K, Q)
        NaN where a quantity is not known.
    error : (D, Q)
        Largest relative error where the model was asked last, halfway between points of the table; NaN where a
        quantity is not known. It is above the tolerance only where a curve still jumps at the finest step.
    """

    quantities: tuple[str, ...]
    stable_qps: Floats
    start: Ints
    axis: Floats
    values: Floats
    error: Floats

    @classmethod
    def of(
        cls,
        deployments: Sequence[Deployment],
        steps: StepTimes,
        workload: Workload,
        quantities: Sequence[str] = QUANTITIES,
        tolerance: float = TOLERANCE,
    ) -> ServingTable:
        """Tabulate D `deployments`, with step times `steps`, under Poisson arrivals of `workload`.

        Parameters
        ----------
        quantities
            ``{ttft,tpot,e2e}_{mean,pN}`` and ``power_w``. Not ``itl``, whose percentiles jump.
        tolerance
            Relative error that is allowed halfway between points.

        Raises
        ------
        InputError
            A quantity is not one of these.
        """
        exact = _Exact.of(deployments, steps, workload, quantities)
        first = np.arange(LEAST_X, GREATEST_X + START_STEP / 2, START_STEP)
        whose = np.repeat(np.arange(len(deployments)), len(first))
        x = np.tile(first, len(deployments))
        points = [(whose, x, exact.at(whose, x))]
        error = np.full((len(deployments), len(quantities)), np.nan)
        # Intervals that may be too wide: between neighbours of one deployment.
        inner = np.flatnonzero(np.diff(whose) == 0)
        whose, low, high = whose[inner], x[inner], x[inner + 1]
        at_low, at_high = points[0][2][inner], points[0][2][inner + 1]
        near_before, step = np.zeros(len(whose), dtype=bool), START_STEP
        while len(whose):
            middle = (low + high) / 2
            found = exact.at(whose, middle)
            points.append((whose, middle, found))
            off = _relative((at_low + at_high) / 2, found)
            step /= 2
            near: Bools = np.logical_not((off > tolerance).any(axis=1))
            # A kink may lie so that the one point halfway tells nothing of it: where the curve rises, ask twice.
            sure = near & (near_before | ~(_relative(at_low, at_high) > RISE).any(axis=1))
            coarse = ~sure & (step > FINEST_STEP)
            np.fmax.at(error, whose[~coarse], off[~coarse])
            whose, near_before = np.tile(whose[coarse], 2), np.tile(near[coarse], 2)
            low, high = np.append(low[coarse], middle[coarse]), np.append(middle[coarse], high[coarse])
            at_low = np.concatenate([at_low[coarse], found[coarse]])
            at_high = np.concatenate([found[coarse], at_high[coarse]])
        whose, x, values = (np.concatenate(part) for part in zip(*points, strict=True))
        axis = STRIDE * whose + x
        order = np.argsort(axis)
        start = np.searchsorted(whose[order], np.arange(len(deployments) + 1))
        return cls(tuple(quantities), exact.stable_qps, start, axis[order], values[order], error)

    def at(self, index: Ints, rate_qps: Floats) -> Floats:
        """Return the quantities, (N, Q), of deployments `index` (N,) each at its `rate_qps` (N,) requests/s.

        Beyond the greatest utilisation of the table, which is taken for saturation, latencies are infinite and power
        is NaN; below the least, the values are those at the least.

        Raises
        ------
        InputError
            A rate is negative or not a number, or there is no such deployment.
        """
        index, rate = np.broadcast_arrays(np.asarray(index, dtype=np.intp), np.asarray(rate_qps, dtype=float))
        if not ((index >= 0) & (index < len(self.stable_qps))).all():
            raise InputError(f"a deployment that is not in the table; it has 0 to {len(self.stable_qps) - 1}")
        if not (rate >= 0).all():
            raise InputError("a rate below 0 requests/s, or none at all")
        stable = self.stable_qps[index]
        served = rate < _utilisation(GREATEST_X) * stable
        # Idle and saturated replicas are read at the ends; what the latter answer is replaced.
        busy = np.clip(rate / np.where(served, stable, np.inf), _utilisation(LEAST_X), None)
        along = STRIDE * index + np.log(busy / (1 - busy))
        left = np.clip(
            np.searchsorted(self.axis, along, side="right") - 1, self.start[index], self.start[index + 1] - 2
        )
        share = ((along - self.axis[left]) / (self.axis[left + 1] - self.axis[left]))[:, None]
        with np.errstate(invalid="ignore"):  # of replicas that cannot serve at all
            answers: Floats = self.values[left] * (1 - share) + self.values[left + 1] * share
        answers[~served] = [np.nan if name == "power_w" else np.inf for name in self.quantities]
        return answers


@dataclass(frozen=True, slots=True, eq=False)
class _Exact:
    """The serving model itself, asked for any of D deployments at any utilisation."""

    deployments: Sequence[Deployment]
    model: SharingModel
    workload: Workload
    quantities: Sequence[str]
    stable_qps: Floats

    @classmethod
    def of(
        cls, deployments: Sequence[Deployment], steps: StepTimes, workload: Workload, quantities: Sequence[str]
    ) -> _Exact:
        for name in quantities:
            if name != "power_w" and _NAME.fullmatch(name) is None:
                raise InputError(
                    f"a serving table has no '{name}'; expected power_w, or ttft, tpot or e2e with _mean or a "
                    "percentile, such as ttft_p90"
                )
        model = SharingModel.of(deployments, steps)
        return cls(deployments, model, workload, quantities, model.saturation_qps(workload, ()))

    def at(self, whose: Ints, x: Floats) -> Floats:
        """Return the quantities, (N, Q), of deployments `whose` (N,) at utilisations `x` (N,)."""
        parts = range(0, len(whose), CHUNK)
        return np.concatenate([self._at(whose[n : n + CHUNK], x[n : n + CHUNK]) for n in parts])

    def _at(self, whose: Ints, x: Floats) -> Floats:
        steps = self.model.steps.take(whose)
        model = SharingModel(steps, self.model.kv_tokens[whose], self.model.max_context[whose])
        rate = _utilisation(x) * self.stable_qps[whose]
        loaded = model.at(self.workload, rate)
        columns = []
        for name in self.quantities:
            found = _NAME.fullmatch(name)
            if found is None:
                asked = [self.deployments[one] for one in whose]
                columns.append(energy(asked, steps, self.workload, rate, loaded).power_w)
            elif found[2] is None:
                columns.append(loaded.mean(found[1]))
            else:
                columns.append(loaded.percentile(found[1], float(found[2])))
        return np.column_stack(columns)


def _utilisation(x: Floats | float) -> Floats:
    """Return the utilisation at ``x = ln(u / (1 - u))``."""
    share: Floats = 1 / (1 + np.exp(-np.asarray(x)))
    return share


def _relative(value: Floats, truth: Floats) -> Floats:
    """Return by how much `value` is off; NaN where the truth is not known, or not finite."""
    known = np.isfinite(truth) & (truth > 0)
    off: Floats = np.abs(np.where(known, value, np.nan) / np.where(known, truth, np.nan) - 1)
    return off
