"""Calibrating a fitted model on the serving rows of a store, and what a few of those rows would have done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibrated import Calibrated
from qplan.models.calibration.curve import COUNTS, Curve
from qplan.models.calibration.doubt import shipped_doubt
from qplan.models.calibration.latency import METRICS, correct, pick
from qplan.models.calibration.lessons import Lessons, shipped_lessons
from qplan.models.calibration.loops import Load, LoopsPrior
from qplan.models.calibration.observed import observed
from qplan.models.calibration.points import choose
from qplan.models.calibration.priors import ClosedLoad
from qplan.models.calibration.systems import branch_of, fit_systems
from qplan.models.fitted import Fitted
from qplan.models.profiled import Profiled
from qplan.models.steptimes import Floats

if TYPE_CHECKING:
    import pyarrow as pa

_DRAWS = 3


@dataclass(frozen=True, slots=True)
class FewPoints:
    """Error against the number of points, on the rows that calibration did not see.

    Attributes
    ----------
    designs
        Least and greatest median error over ways to choose the points, by metric and number of points.
    """

    curve: Curve
    designs: Mapping[str, Mapping[int, tuple[float, float]]]


def calibrate_fitted(prior: Fitted, table: pa.Table, measured_in: str) -> tuple[Calibrated, FewPoints]:
    """Correct `prior` by the closed- and open-loop runs of `table`.

    Parameters
    ----------
    table
        Observations with the columns of the schema.
    measured_in
        Name of the store or pack that they come from.

    Raises
    ------
    InputError
        There is no serving run with a mean TTFT or TPOT, or one names what the catalogue does not know.
    """
    rows, measured = _runs(table, measured_in)
    if not rows:
        raise InputError(
            f"--measured: {measured_in} has no serving row with status ok, a load (offered_qps or concurrency) and a "
            "mean TTFT or TPOT to calibrate on"
        )
    deployments = {branch_of(row.deployment)[0:1] + branch_of(row.deployment)[3:]: row.deployment for row in rows}
    asked = tuple(deployments.values())
    steps = LoopsPrior(Profiled(asked, prior.steps.step_times(asked), (prior.evidence,) * len(asked)))
    lessons = shipped_lessons()
    systems = fit_systems(steps, rows, measured, lessons, shipped_doubt())
    return Calibrated(prior, systems, measured_in), few_points(steps, rows, measured, lessons)


def few_points(
    prior: LoopsPrior, rows: Sequence[Load], measured: Mapping[str, Floats], lessons: Lessons, draws: int = _DRAWS
) -> FewPoints:
    """Calibrate each deployment on 0, 1, 3, 5, 10 of its rows, chosen over loads and lengths; judge on its others."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, row in enumerate(rows):
        groups.setdefault(branch_of(row.deployment), []).append(n)
    uncorrected: dict[str, dict[str, Floats]] = {metric: {} for metric in METRICS}
    by_draw: dict[str, dict[int, dict[str, list[Floats]]]] = {metric: {} for metric in METRICS}
    for branch, members in groups.items():
        index, name = np.array(members), " ".join(filter(None, branch))
        own, here = pick(rows, index), {metric: measured[metric][index] for metric in METRICS}
        its_prior = prior.only({row.deployment for row in own})
        places = np.array([row.coordinates for row in own])
        for metric, parts in its_prior(own).items():
            errors = _errors(parts.total, here[metric])
            if len(errors):
                uncorrected[metric][name] = errors
        for count in (count for count in COUNTS if count < len(own)):
            for seed in range(draws if count else 1):
                chosen = choose(places, count, seed)
                others = np.setdiff1d(np.arange(len(own)), chosen)
                seen = {metric: here[metric][chosen] for metric in METRICS}
                found = correct(its_prior, pick(own, chosen), seen, lessons)
                for metric, predicted in found.predict(its_prior, pick(own, others)).items():
                    errors = _errors(predicted, here[metric][others])
                    if len(errors):
                        by_draw[metric].setdefault(count, {}).setdefault(name, []).append(errors)
    calibrated = {
        metric: {count: {name: np.concatenate(each) for name, each in named.items()} for count, named in counts.items()}
        for metric, counts in by_draw.items()
        if counts
    }
    designs = {
        metric: {count: _range(list(named.values())) for count, named in counts.items()}
        for metric, counts in by_draw.items()
    }
    return FewPoints(Curve(uncorrected, calibrated, {}), designs)


def _runs(table: pa.Table, where: str) -> tuple[tuple[Load, ...], dict[str, Floats]]:
    """Return the runs that tell a latency, and their means."""
    closed, opened = observed(table, where)
    rows: tuple[Load, ...] = (*closed.rows, *opened.rows)
    measured = {
        metric: np.concatenate([closed.measured[metric], opened.measured[metric]]).astype(float) for metric in METRICS
    }
    for values in measured.values():
        values[~(values > 0)] = np.nan
    # A closed loop of single tokens has no decoding to share; a run without latencies tells nothing.
    told = [
        n
        for n, row in enumerate(rows)
        if not np.isnan([measured[metric][n] for metric in METRICS]).all()
        and not (isinstance(row, ClosedLoad) and row.output_tokens < 2)
    ]
    index = np.array(told, dtype=np.intp)
    return pick(rows, index), {metric: values[index] for metric, values in measured.items()}


def _errors(predicted: Floats, measured: Floats) -> Floats:
    """Return the absolute relative errors where both are known."""
    known = np.isfinite(predicted) & ~np.isnan(measured)
    errors: Floats = np.abs(predicted[known] / measured[known] - 1)
    return errors


def _range(families: Sequence[Sequence[Floats]]) -> tuple[float, float]:
    """Return the least and the greatest median of a draw over all families."""
    draws = max(len(each) for each in families)
    medians = [
        float(np.median(np.concatenate([each[draw] for each in families if draw < len(each)]))) for draw in range(draws)
    ]
    return min(medians), max(medians)
